"""Save a comparison of decoding strategies: JSON, table, and plot."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from loraqa.answer.compare import Comparison
from loraqa.files import write_json, write_text
from loraqa.report.plots import quality_against_diversity, save_png
from loraqa.report.tables import strategies_table


def save_comparison(compared: Sequence[Comparison], folder: Path) -> None:
    """Write `comparison.json`, `comparison.md` and `quality-against-diversity.png`."""
    write_json(folder / "comparison.json", [asdict(row) for row in compared])
    table = strategies_table(compared)
    write_text(folder / "comparison.md", f"{table.title}\n\n{table.to_markdown()}")
    save_png(quality_against_diversity(compared), folder / "quality-against-diversity.png")
