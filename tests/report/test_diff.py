"""Tables of a comparison of two evaluations fit a terminal and name the runs."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tests.analysis.examples import asked, outcome

from loraqa.analysis.diff import Difference, diff
from loraqa.report.diff import all_tables, names_of, slices_tables


def difference(contexts: int) -> Difference:
    """Compare an evaluation with one that has every other question wrong."""
    texts = [f"The mill was built by Ruth Olen in 1203. It has {n} gates." for n in range(contexts)]
    first, second = (
        outcome(
            [
                asked("Who built it?", ["Ruth Olen"], given, text, id=f"q{n}", number=n)
                for n, (text, given) in enumerate(zip(texts, answers * contexts, strict=False))
            ],
            texts,
        )
        for answers in (["Ruth Olen"], ["Ruth Olen", "1203"])
    )
    return diff(first, second)


@pytest.mark.parametrize("contexts", [4, 12])
def test_tables_fit_80_columns(contexts: int) -> None:
    names = names_of(Path("runs/a-run-with-a-very-long-name"), Path("runs/another-long-name"))
    console = Console(file=StringIO(), width=80)
    tables = all_tables(difference(contexts), names)
    for table in tables:
        console.print(table.to_rich())
    told = console.file.getvalue()  # type: ignore[attr-defined]
    for table in tables:
        for row in table.rows:
            cells = [column.text(cell) for column, cell in zip(table.columns, row, strict=True)]
            assert any(line.split() == " ".join(cells).split() for line in told.splitlines())
        heads = " ".join(column.name for column in table.columns).split()
        assert any(line.split() == heads for line in told.splitlines())


@pytest.mark.parametrize(("contexts", "shown"), [(9, "only 9 contexts"), (10, " to ")])
def test_fewer_than_ten_contexts_have_no_interval(contexts: int, shown: str) -> None:
    for table in slices_tables(difference(contexts), ("a", "b")):
        assert all(shown in row[-1] for row in table.rows)


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("runs/gpt2", "runs/qwen", ("gpt2", "qwen")),
        ("a/base", "b/base", ("a/base", "b/base")),
        ("runs/squad-seed-one", "runs/squad-seed-two", ("squad…-one", "squad…-two")),
        ("runs/squad-one-more", "runs/squad-two-more", ("first", "second")),
        ("run", "run", ("first", "second")),
    ],
)
def test_names_are_short_and_differ(first: str, second: str, names: tuple[str, str]) -> None:
    assert names_of(Path(first), Path(second)) == names
