"""Tables of a comparison of two evaluations, and a CSV file of the questions that changed."""

import csv
import io
from collections.abc import Callable
from dataclasses import fields
from itertools import groupby
from pathlib import Path

from loraqa.analysis.diff import Change, ChangedQuestion, Difference
from loraqa.errors import counted
from loraqa.report.errors import interval_cell
from loraqa.report.tables import Column, Table

Names = tuple[str, str]
"""What the two evaluations are called in headings."""

# Longer names would make the tables wider than 80 columns.
_LONGEST_NAME = 10


def names_of(first: Path, second: Path) -> Names:
    """Return short names of two folders: the ends of their paths from where they differ."""
    one, other = first.resolve().parts, second.resolve().parts
    ends = (("/".join(one[-n:]), "/".join(other[-n:])) for n in range(1, max(len(one), len(other))))
    names = ((_brief(name), _brief(another)) for name, another in ends)
    return next((pair for pair in names if len(set(pair)) == 2), ("first", "second"))


def all_tables(difference: Difference, names: Names) -> list[Table]:
    """Return all tables."""
    return [*summary_tables(difference, names), *slices_tables(difference, names)]


def summary_tables(difference: Difference, names: Names) -> list[Table]:
    """Return the tables of all questions together."""
    make: tuple[Callable[[Difference, Names], Table], ...]
    make = scores_table, mcnemar_table, changed_kinds_table
    return [each(difference, names) for each in make]


def scores_table(difference: Difference, names: Names) -> Table:
    """Return a table of exact match and F1 of both, and their changes."""
    rows = (
        ("EM", *_cells(difference.exact_match, difference.contexts)),
        ("F1", *_cells(difference.f1, difference.contexts)),
    )
    title = (
        f"{counted(difference.questions, 'question')} on "
        f"{counted(difference.contexts, 'context')}, answered by both"
    )
    return Table(title, (Column("score"), *_columns(names)), rows)


def mcnemar_table(difference: Difference, names: Names) -> Table:
    """Return a table of how many questions only one of them has right, with McNemar's p value."""
    first, second = names
    rows = (
        (f"right in {first} only", difference.only_first),
        (f"right in {second} only", difference.only_second),
        ("McNemar's p", float(f"{difference.p_value:.3g}")),
    )
    return Table("Exact matches", (Column("questions"), Column("number", ",.10g")), rows)


def changed_kinds_table(difference: Difference, names: Names) -> Table:
    """Return a table of the kinds of errors that questions have in the first and the second."""
    first, second = names
    rows = tuple(row for row in difference.kinds if row[0] != row[1])
    columns = (Column(f"kind in {first}"), Column(f"in {second}"), Column("questions", ",d"))
    return Table("Changed kinds of errors", columns, rows)


def slices_tables(difference: Difference, names: Names) -> list[Table]:
    """Return a table of F1 in every slice, for each dimension."""
    columns = (Column("questions with"), Column("number", ",d"), *_columns(names))
    return [
        Table(
            f"F1 by {dimension}",
            columns,
            tuple((each.label, each.questions, *_cells(each.f1, each.contexts)) for each in found),
        )
        for dimension, found in groupby(difference.slices, key=lambda each: each.dimension)
    ]


def changed_csv(difference: Difference) -> str:
    """Return a CSV file with a line for each question that was answered differently."""
    text = io.StringIO()
    names = [field.name for field in fields(ChangedQuestion)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for changed in difference.changed:
        values = {name: getattr(changed, name) for name in names}
        writer.writerow((values | {"golds": " | ".join(changed.golds)}).values())
    return text.getvalue()


def _brief(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:5]}…{name[-4:]}"


def _columns(names: Names) -> tuple[Column, ...]:
    scores = (Column(name, ".1f") for name in names)
    return (*scores, Column("change", "+.1f"), Column("95% interval"))


def _cells(change: Change, contexts: int) -> tuple[float, float, float, str]:
    interval = interval_cell(change.change, contexts, "+")
    return change.first, change.second, change.change.mean, interval
