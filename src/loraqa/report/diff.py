"""Tables of a comparison of two evaluations, and a CSV file of the questions that changed."""

import csv
import io
from dataclasses import fields

from loraqa.analysis.diff import Change, ChangedQuestion, Difference
from loraqa.errors import counted
from loraqa.report.errors import interval_text
from loraqa.report.tables import Column, Table

_SCORES = (
    Column("first", ".1f"),
    Column("second", ".1f"),
    Column("change", "+.1f"),
    Column("95% interval"),
)


def scores_table(difference: Difference) -> Table:
    """Return a table of exact match and F1 of both, and their changes."""
    rows = (
        ("EM", *_cells(difference.exact_match, difference.contexts)),
        ("F1", *_cells(difference.f1, difference.contexts)),
    )
    title = (
        f"{counted(difference.questions, 'question')} on "
        f"{counted(difference.contexts, 'context')}, answered by both"
    )
    return Table(title, (Column("score"), *_SCORES), rows)


def mcnemar_table(difference: Difference) -> Table:
    """Return a table of how many questions only one of them has right, with McNemar's p value."""
    rows = (
        ("right in the first only", difference.only_first),
        ("right in the second only", difference.only_second),
        ("McNemar's p", float(f"{difference.p_value:.3g}")),
    )
    return Table("Exact matches", (Column("questions"), Column("number", ",.10g")), rows)


def changed_kinds_table(difference: Difference) -> Table:
    """Return a table of the kinds of errors that questions have in the first and the second."""
    rows = tuple(row for row in difference.kinds if row[0] != row[1])
    columns = (Column("kind in the first"), Column("in the second"), Column("questions", ",d"))
    return Table("Changed kinds of errors", columns, rows)


def slices_table(difference: Difference) -> Table:
    """Return a table of F1 in every slice."""
    rows = tuple(
        (f"{each.dimension}: {each.label}", each.questions, *_cells(each.f1, each.contexts))
        for each in difference.slices
    )
    columns = (Column("slice"), Column("questions", ",d"), *_SCORES)
    return Table("F1 by slice", columns, rows)


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


def _cells(change: Change, contexts: int) -> tuple[float, float, float, str | None]:
    interval = interval_text(change.change, contexts, "+")
    return change.first, change.second, change.change.mean, interval
