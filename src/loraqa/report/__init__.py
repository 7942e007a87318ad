"""Reports: tables, plots, progress, and the report of a run in one HTML file.

Most functions take plain data (records, mappings, strings), so that the same table can be shown on
a terminal, in Markdown and in HTML. matplotlib and rich are imported only when they are needed.
"""

from loraqa.report.tables import (
    Column,
    Table,
    settings_table,
    strategies_table,
    training_table,
)

__all__ = [
    "Column",
    "Table",
    "settings_table",
    "strategies_table",
    "training_table",
]
