"""Tables of plain data, for a terminal, Markdown and HTML."""

import html
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from loraqa.errors import counted
from loraqa.report.time_left import clock

if TYPE_CHECKING:
    import rich.table

    from loraqa.answer.compare import Comparison

Cell: TypeAlias = str | int | float | None

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """The heading of a column and the format specification of its numbers, for example `.1f`."""

    name: str
    format: str = ""

    def text(self, cell: Cell) -> str:
        """Return the cell as one line of printable text."""
        if cell is None:
            return MISSING
        if isinstance(cell, str):
            return printable(cell)
        return format(cell, self.format)


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Columns without text are right-aligned."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{row} has {len(row)} cells for {len(self.columns)} columns")

    def to_rich(self) -> "rich.table.Table":
        """Return the table for a `rich` console. Cells are not interpreted as markup."""
        import rich.box
        import rich.table
        from rich.text import Text

        table = rich.table.Table(
            title=Text(self.title),
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        for column, numeric in zip(self.columns, self._numeric(), strict=True):
            justify: Literal["left", "right"] = "right" if numeric else "left"
            table.add_column(Text(column.name), justify=justify, overflow="fold")
        # In a narrow terminal, headings wrap, but the names of the rows do not.
        table.columns[0].no_wrap = True
        for row in self._texts():
            table.add_row(*map(Text, row))
        return table

    def to_markdown(self) -> str:
        """Return a GitHub-flavoured Markdown table, without the title."""
        rule = ("--:" if numeric else ":--" for numeric in self._numeric())
        lines = [[column.name for column in self.columns], rule, *self._texts()]
        return "".join(f"| {' | '.join(map(_markdown, line))} |\n" for line in lines)

    def to_html(self) -> str:
        """Return an HTML `<table>`, without the title; all text is escaped."""
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
    """Return `text` on one line, with control characters and surrogates replaced by `�`.

    A terminal would execute control characters.
    """
    line = " ".join(text.split())
    return "".join("�" if unicodedata.category(char) in {"Cc", "Cs"} else char for char in line)


def costs_table(costs: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Return a table of what a training costs: the parts of each kind of cost (see `Costs`)."""
    texts: dict[str, tuple[str, Callable[[float], str]]] = {
        "work": ("work", lambda number: f"{round(number, 2):,}"),
        "memory": ("memory", lambda size: f"{size / 2**20:,.0f} MiB"),
        "disk": ("disk", lambda size: f"{size / 2**20:,.1f} MiB"),
        "seconds": ("time", clock),
    }
    rows = tuple(
        (name, part.replace("_", " "), MISSING if value is None else text(value))
        for kind, (name, text) in texts.items()
        for part, value in costs[kind].items()
    )
    return Table("Costs of the training", (Column("cost"), Column("of"), Column("is")), rows)


def strategies_table(comparisons: Iterable["Comparison"]) -> Table:
    """Return a table of decoding strategies, all on the same questions.

    EM and F1 are those of any sample, or of the best answer. Next to them stands F1 of the answers
    that are chosen by vote, and by an oracle, then the share of answers that stand in the context,
    and the number of distinct answers per question. These are missing where there is one answer.
    The time is in seconds per question.
    """
    comparisons = list(comparisons)
    columns = (
        Column("strategy"),
        Column("EM", ".1f"),
        Column("F1", ".1f"),
        Column("vote", ".1f"),
        Column("oracle", ".1f"),
        Column("found", ".0%"),
        Column("distinct", ".2f"),
        Column("time", ".3f"),
    )
    rows = tuple(
        (
            each.strategy,
            each.exact_match,
            each.f1,
            *(_f1(each, name) for name in ("vote", "oracle")),
            each.found,
            each.distinct if each.draws and each.samples > 1 else None,
            each.seconds / each.questions,
        )
        for each in comparisons
    )
    asked = max((each.questions for each in comparisons), default=0)
    return Table(f"Decoding strategies on {counted(asked, 'question')}", columns, rows)


def scores_table(scores: Mapping[str, Any]) -> Table:
    """Return a table of the scores in `Scores.to_json`, to six digits."""
    rows = tuple((name, float(f"{value:.6g}")) for name, value in scores.items())
    return Table("Scores", (Column("score"), Column("value", ",.10g")), rows)


def training_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Return a summary of a run's `metrics.jsonl`.

    Raises:
        ValueError: there is no record of a training step.
    """
    records = list(records)
    steps = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    if not steps:
        raise ValueError("there is no record of a training step")
    rows = [
        ("steps", f"{steps[-1]['step']:,}"),
        ("epochs", f"{steps[-1]['epoch']:.2f}"),
        ("loss, first step and mean of the last ten", _loss(steps)),
        ("questions per second (median)", _median(steps, "questions_per_second")),
        ("tokens per second (median)", _median(steps, "tokens_per_second")),
        ("memory (MiB, highest)", f"{max(record['memory_mib'] for record in steps):,.0f}"),
    ]
    if evaluations:
        best = max(evaluations, key=lambda record: record["f1"])
        rows.append(("best F1 on dev", f"{best['f1']:.1f} (step {best['step']:,})"))
    return Table("Training", (Column("measure"), Column("value")), tuple(rows))


def settings_table(title: str, settings: Mapping[str, Any]) -> Table:
    """Return a table of names and values; names in nested mappings become `outer.inner`."""
    rows = tuple((name, str(value)) for name, value in _flattened(settings))
    return Table(title, (Column("setting"), Column("value")), rows)


def common_module(names: Iterable[str]) -> str:
    """Return the innermost module that contains all named layers; empty for the whole model."""
    outer = (name.split(".")[:-1] for name in names)
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*outer, strict=False))
    return ".".join(parts[0] for parts in shared)


def _f1(comparison: "Comparison", name: str) -> float | None:
    choice = comparison.choice(name)
    return choice.f1.mean if choice else None


def _loss(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the loss of the first step and the mean of the last ten.

    The last step alone may have only a few questions.
    """
    return f"{steps[0]['loss']:.3f} → {fmean(step['loss'] for step in steps[-10:]):.3f}"


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
