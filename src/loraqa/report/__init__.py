"""Reports of a run: tables, plots, and one HTML file with both.

All functions take plain data (records, mappings, strings), so that the same table can be shown on a
terminal, in Markdown and in HTML. matplotlib and rich are imported only when they are needed.
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
