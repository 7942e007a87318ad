"""What a run has to show: tables, plots, and a report in one HTML file.

Everything takes plain data (records, mappings, strings), so the same table goes to the terminal,
into Markdown and into the report. matplotlib and rich are imported where something is drawn.
"""

from loraqa.report.html import Example, Examples, Highlights, Plot, Report, Text
from loraqa.report.tables import (
    Column,
    Table,
    before_after_table,
    settings_table,
    spectra_table,
    strategies_table,
    training_table,
)

__all__ = [
    "Column",
    "Example",
    "Examples",
    "Highlights",
    "Plot",
    "Report",
    "Table",
    "Text",
    "before_after_table",
    "settings_table",
    "spectra_table",
    "strategies_table",
    "training_table",
]
