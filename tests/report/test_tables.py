"""Tables: the same cells on a terminal, in Markdown and in HTML."""

from html.parser import HTMLParser
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.report.comparisons import drawn, searched

from loraqa.report.tables import (
    Column,
    Table,
    costs_table,
    printable,
    settings_table,
    strategies_table,
    training_table,
)

HOSTILE = Table(
    "Hostile [red]title[/]",
    (Column("text"), Column("number", ".2f")),
    (("[bold]a | b\\[/] <b>&amp;</b>\n\x1b[31m", 1.0), ("", None)),
)


class Cells(HTMLParser):
    """The texts of all `<th>` and `<td>` by row, as a browser shows them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.classes: list[str | None] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")
            self.classes.append(dict(attrs).get("class"))
        else:
            assert tag in {"table", "thead", "tbody"}

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def on_terminal(table: Table, width: int = 120) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(table.to_rich())
    return console.file.getvalue()


def test_html_contains_every_cell_and_only_table_tags() -> None:
    cells = Cells(HOSTILE.to_html())
    assert cells.rows == [
        ["text", "number"],
        ["[bold]a | b\\[/] <b>&amp;</b> �[31m", "1.00"],
        ["", "–"],
    ]
    assert cells.classes == [None, "number"] * 3


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_survives_html_as_its_printable_form(texts: list[str]) -> None:
    table = Table("", tuple(Column("c") for _ in texts), (tuple(texts),))
    assert Cells(table.to_html()).rows[1] == [printable(text) for text in texts]


@given(st.text())
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    line = printable(text)
    assert len(line.splitlines()) <= 1
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line)
    line.encode()


def test_printable_keeps_ordinary_text_of_any_script() -> None:
    for text in ("Où est-il ?", "東京 (とうきょう)", "می‌خواهم", "👩‍🚀 e\u0301"):
        assert printable(text) == text


def test_markdown_has_one_line_per_row_and_escapes_cells() -> None:
    head, rule, first, second = HOSTILE.to_markdown().splitlines()
    assert head == "| text | number |"
    assert rule == "| :-- | --: |"
    assert first == "| [bold]a \\| b\\\\[/] &lt;b&gt;&amp;amp;&lt;/b&gt; �[31m | 1.00 |"
    assert second == "|  | – |"


def test_terminal_interprets_no_markup_or_escape_sequence() -> None:
    shown = on_terminal(HOSTILE)
    assert "Hostile [red]title[/]" in shown
    assert "[bold]a | b\\[/] <b>&amp;</b> �[31m" in shown
    assert "\x1b" not in shown


def test_terminal_wraps_a_long_cell_without_truncating_it() -> None:
    path = "/" + "x" * 90
    shown = on_terminal(settings_table("Settings", {"path": path}), width=40)
    assert shown.count("x") == 90
    assert "…" not in shown


def test_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("", (Column("a"), Column("b")), ((1,),))


def test_choices_and_variety_stand_where_there_are_several_answers() -> None:
    table = strategies_table([searched("greedy"), drawn("top-p", found=None)])
    assert table.title == "Decoding strategies on 1,234 questions"
    assert Cells(table.to_html()).rows[1:] == [
        ["greedy", "50.1", "60.1", "–", "–", "90%", "–", "0.100"],
        ["top-p", "50.1", "60.1", "62.1", "80.1", "–", "2.35", "0.100"],
    ]


@pytest.mark.parametrize("strategy", ["temperature:0.7", "temperature:1.5+min-p:0.1"])
def test_strategies_fit_on_one_line_of_80_columns(strategy: str) -> None:
    """Not even headings are broken within a word."""
    rows = [drawn(strategy, f1=80.0, found=1.0, distinct=14.68)]
    shown = on_terminal(strategies_table(rows), width=80).splitlines()
    (row,) = [line for line in shown if strategy in line]
    figures = ["70.0", "80.0", "82.0", "100.0", "100%", "14.68", "0.100"]
    assert row.split() == [strategy, *figures]
    headings = ["strategy", "EM", "F1", "vote", "oracle", "found", "distinct", "time"]
    assert headings in [line.split() for line in shown]


def training_record(step: int, **changes: float) -> dict[str, object]:
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 4,
        "loss": 1 / step,
        "learning_rate": 0.001,
        "gradient_norm": 1.0,
        "questions_per_second": 80.0,
        "tokens_per_second": 12345.0,
        "memory_mib": 1000.0,
    } | changes


def test_costs_are_shown_in_their_units() -> None:
    costs = {
        "work": {"epochs": 1.2512, "tokens_as_trees": 12345},
        "memory": {"weights": 3 * 2**20},
        "disk": {"adapter": 2**19},
        "seconds": {"training": 3723.4, "calibration": None},
    }
    assert costs_table(costs).rows == (
        ("work", "epochs", "1.25"),
        ("work", "tokens as trees", "12,345"),
        ("memory", "weights", "3 MiB"),
        ("disk", "adapter", "0.5 MiB"),
        ("time", "training", "1:02:03"),
        ("time", "calibration", "–"),
    )


def test_training_table_summarizes_the_run() -> None:
    records = [
        training_record(1, questions_per_second=5.0),
        {"kind": "evaluation", "step": 1, "exact_match": 20.0, "f1": 45.0, "total": 10},
        training_record(2, memory_mib=2000.0),
        {"kind": "evaluation", "step": 2, "exact_match": 30.0, "f1": 44.0, "total": 10},
        training_record(3),
    ]
    assert dict(row for row in training_table(records).rows) == {
        "steps": "3",
        "epochs": "0.75",
        "loss, first step and mean of the last ten": "1.000 → 0.611",
        "questions per second (median)": "80.0",
        "tokens per second (median)": "12,345",
        "memory (MiB, highest)": "2,000",
        "best F1 on dev": "45.0 (step 1)",
    }


def test_training_table_averages_the_last_ten_losses() -> None:
    losses = [9.0, *[2.0] * 10, 0.0]
    records = [training_record(step, loss=loss) for step, loss in enumerate(losses, start=1)]
    assert ("loss, first step and mean of the last ten", "9.000 → 1.800") in (
        training_table(records).rows
    )


def test_training_table_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no record of a training step"):
        training_table([{"kind": "evaluation", "step": 0, "f1": 1.0}])


def test_settings_inside_settings_become_dotted_names() -> None:
    table = settings_table("Settings", {"seed": 1, "lora": {"rank": 8, "targets": ["q", "v"]}})
    assert table.rows == (
        ("seed", "1"),
        ("lora.rank", "8"),
        ("lora.targets", "['q', 'v']"),
    )
