"""Tables: built once from plain data, shown on a terminal, in Markdown and in HTML."""

import html
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import rich.table

Cell: TypeAlias = str | int | float | None

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading and the format specification of its numbers, for example `.1f`."""

    name: str
    format: str = ""

    def text(self, cell: Cell) -> str:
        """The cell as one line of printable text."""
        if cell is None:
            return MISSING
        if isinstance(cell, str):
            return printable(cell)
        return format(cell, self.format)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns. Columns without text are set flush right."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{row} has {len(row)} cells for {len(self.columns)} columns")

    @classmethod
    def from_records(
        cls, title: str, records: Iterable[Mapping[str, Any]], columns: Mapping[str, Column]
    ) -> "Table":
        """One row for each record; a column that no record has a value for is left out."""
        records = list(records)
        present = [key for key in columns if any(record.get(key) is not None for record in records)]
        return cls(
            title,
            tuple(columns[key] for key in present),
            tuple(tuple(record.get(key) for key in present) for record in records),
        )

    def to_rich(self) -> "rich.table.Table":
        """The table for a `rich` console. No cell is read as markup."""
        import rich.box
        import rich.table
        from rich.text import Text

        table = rich.table.Table(
            title=Text(self.title), title_justify="left", box=rich.box.SIMPLE_HEAD
        )
        for column, numeric in zip(self.columns, self._numeric(), strict=True):
            justify: Literal["left", "right"] = "right" if numeric else "left"
            table.add_column(Text(column.name), justify=justify, overflow="fold")
        for row in self._texts():
            table.add_row(*map(Text, row))
        return table

    def to_markdown(self) -> str:
        """A GitHub-flavoured Markdown table, without the title."""
        rule = ("--:" if numeric else ":--" for numeric in self._numeric())
        lines = [[column.name for column in self.columns], rule, *self._texts()]
        return "".join(f"| {' | '.join(map(_markdown, line))} |\n" for line in lines)

    def to_html(self) -> str:
        """An HTML `<table>`, without the title; everything is escaped."""
        marks = [' class="number"' if numeric else "" for numeric in self._numeric()]
        head = _html_row("th", marks, (column.name for column in self.columns))
        body = "\n".join(_html_row("td", marks, row) for row in self._texts())
        return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def _texts(self) -> list[list[str]]:
        return [
            [column.text(cell) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def _numeric(self) -> list[bool]:
        return [
            not any(isinstance(row[index], str) for row in self.rows)
            for index in range(len(self.columns))
        ]


def printable(text: str) -> str:
    """`text` on one line; control characters, which a terminal obeys, and surrogates become `�`."""
    line = " ".join(text.split())
    return "".join("�" if unicodedata.category(char) in {"Cc", "Cs"} else char for char in line)


STRATEGY_COLUMNS = {
    "strategy": Column("strategy"),
    "exact_match": Column("EM", ".1f"),
    "f1": Column("F1", ".1f"),
    "found": Column("found in context", ".1%"),
    "distinct": Column("distinct answers", ".2f"),
    "entropy": Column("entropy (bits)", ".2f"),
    "oracle_f1": Column("oracle F1", ".1f"),
    "seconds": Column("seconds", ".1f"),
}


def strategies_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Decoding strategies side by side: one record each, with the keys of `STRATEGY_COLUMNS`."""
    return Table.from_records("Decoding strategies", records, STRATEGY_COLUMNS)


SCORE_NAMES = {
    "exact_match": "EM",
    "f1": "F1",
    "has_answer_exact_match": "EM, answerable",
    "has_answer_f1": "F1, answerable",
    "no_answer_exact_match": "EM, unanswerable",
    "no_answer_f1": "F1, unanswerable",
}


def before_after_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Every score that both evaluations have, in percent, and what training added to it."""
    columns = (Column("score"), *(Column(name, ".1f") for name in ("before", "after")))
    rows = tuple(
        (name, before[key], after[key], after[key] - before[key])
        for key, name in SCORE_NAMES.items()
        if key in before and key in after
    )
    return Table("Before and after", (*columns, Column("change", "+.1f")), rows)


def training_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """What a run's `metrics.jsonl` amounts to.

    Raises:
        ValueError: no record is of a training step.
    """
    records = list(records)
    steps = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    if not steps:
        raise ValueError("no record is of a training step")
    rows = [
        ("steps", f"{steps[-1]['step']:,}"),
        ("epochs", f"{steps[-1]['epoch']:.2f}"),
        ("loss, first and last step", f"{steps[0]['loss']:.3f} → {steps[-1]['loss']:.3f}"),
        ("questions a second (median)", _median(steps, "questions_per_second")),
        ("tokens a second (median)", _median(steps, "tokens_per_second")),
        ("memory (MiB, highest)", f"{max(record['memory_mib'] for record in steps):,.0f}"),
    ]
    if evaluations:
        best = max(evaluations, key=lambda record: record["f1"])
        rows.append(("best F1 on dev", f"{best['f1']:.1f} (step {best['step']:,})"))
    return Table("Training", (Column("measure"), Column("value")), tuple(rows))


def settings_table(title: str, settings: Mapping[str, Any]) -> Table:
    """Names and values; a mapping inside a mapping becomes `outer.inner`."""
    rows = tuple((name, str(value)) for name, value in _flattened(settings))
    return Table(title, (Column("setting"), Column("value")), rows)


def _median(records: Sequence[Mapping[str, Any]], key: str) -> str:
    value = median(record[key] for record in records)
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _markdown(text: str) -> str:
    return html.escape(text, quote=False).replace("\\", "\\\\").replace("|", "\\|")


def _html_row(tag: str, marks: Iterable[str], texts: Iterable[str]) -> str:
    cells = zip(marks, texts, strict=True)
    return f"<tr>{''.join(f'<{tag}{m}>{html.escape(text)}</{tag}>' for m, text in cells)}</tr>"
