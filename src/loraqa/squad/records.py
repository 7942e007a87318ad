"""Read records of one question each, as JSON has them; other formats bring theirs here.

A record has the hub's columns: id, title, context, question, answers. For the answers there may be
the columns `answer_text` (or `answer`) and `answer_start` instead. Only the letters of a column's
name count, so "Answer Start" is `answer_start`.
"""

from collections.abc import Collection, Hashable
from functools import lru_cache
from typing import Any

from loraqa.errors import InputError, some_of
from loraqa.squad.checks import Place
from loraqa.squad.golds import is_absent
from loraqa.squad.intake import Intake, given_id
from loraqa.squad.literals import parse_answers, parse_offsets

# Columns that may hold the answers, the first that there is.
ANSWER_COLUMNS = ("answers", "answer_text", "answer")
_COLUMNS = (
    *("id", "title", "context", "question", "answer_start", "is_impossible", "is_answerable"),
    *ANSWER_COLUMNS,
)
_BY_LETTERS = {name.replace("_", ""): name for name in _COLUMNS} | {
    # Tables that were flattened have a column for each part of the answers.
    "answerstext": "answer_text",
    "answersanswerstart": "answer_start",
    "answerable": "is_answerable",
    "hasanswer": "is_answerable",
    "unanswerable": "is_impossible",
    "isunanswerable": "is_impossible",
}


@lru_cache
def column(name: Hashable) -> str | None:
    """Return the column that a name means; None if it means none."""
    return _BY_LETTERS.get("".join(filter(str.isalnum, str(name).casefold())))


def is_record(node: Any) -> bool:
    """Return whether parsed JSON is an object with a question."""
    return isinstance(node, dict) and "question" in map(column, node)


def rows_of_columns(table: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the records of a table that has a list for each column; None if it is no such table.

    pandas writes objects from row numbers to cells instead of lists.
    """
    columns = [list(cells.values()) if type(cells) is dict else cells for cells in table.values()]
    numbers = {tuple(cells) for cells in table.values() if type(cells) is dict}
    if not all(type(cells) is list for cells in columns) or len(numbers) > 1:
        return None
    if len({len(cells) for cells in columns}) != 1:
        return None
    return [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]


def check_columns(names: Collection[Hashable], source: str, hint: str = "") -> None:
    """Raise `InputError` if a table lacks a column, or has one twice.

    Args:
        names: the names of all columns.
        source: the table's name, for the message.
        hint: what else may be wrong, for the message.
    """
    try:
        known = _known_columns(tuple(names))
    except ValueError as error:
        raise InputError(f"{source}: {error}; rename or remove one.") from None
    missing = [repr(name) for name in ("context", "question") if name not in known]
    if not known.keys() & set(ANSWER_COLUMNS):
        missing.append("'answers'")
    if missing:
        given = some_of([repr(name) for name in names], 12) or "none"
        raise InputError(
            f"{source} has no column {' or '.join(missing)}; a table of questions needs the "
            f"columns context, question, and answers (or answer_text, or answer){hint}, but this "
            f"one has {given}."
        )


@lru_cache
def _known_columns(names: tuple[Hashable, ...]) -> dict[str, Hashable]:
    """Return the names of the columns that mean something, by what they mean.

    Raises `ValueError` if two names mean the same and none is written in the standard way.
    """
    known: dict[str, Hashable] = {}
    for meaning in _COLUMNS:
        means = [name for name in names if column(name) == meaning]
        if not means:
            continue
        name, *others = [name for name in means if name == meaning] or means
        if others:
            raise ValueError(f"the columns {name!r} and {others[0]!r} both mean {meaning!r}")
        known[meaning] = name
    return known


def read_record(record: Any, place: Place, intake: Intake) -> None:
    """Pass a record to `intake`."""
    if not intake.has_type(record, dict, place):
        intake.skipped["rows"] += 1
        return
    try:
        known = _known_columns(tuple(record))
        record = _parsed({meaning: record[name] for meaning, name in known.items()})
    except ValueError as error:
        intake.report(place, str(error))
        intake.skipped["rows"] += 1
        return
    place = place._replace(id=given_id(record))
    context, title = intake.context(record, place), intake.title(record, place)
    keys = ("id", "question", "is_impossible", "is_answerable")
    question = {key: record[key] for key in keys if key in record}
    if known.keys() & set(ANSWER_COLUMNS):
        question["answers"] = _answers(record)
    intake.question(question, place, context, title)


def _parsed(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with its answers and offsets parsed where they are text."""
    context = record.get("context")
    for name, cell in record.items():
        if type(cell) is str and name in ANSWER_COLUMNS:
            record[name] = parse_answers(cell, context if type(context) is str else "")
        elif type(cell) is str and name == "answer_start":
            record[name] = parse_offsets(cell)
    return record


def _answers(record: dict[str, Any]) -> Any:
    """Return the answers of a record; texts with the offsets of the column `answer_start`."""
    # Tables that were joined have the columns of both, and only one of them is filled in a row.
    columns = [name for name in ANSWER_COLUMNS if not _holds_nothing(record.get(name))]
    answers = record[columns[0]] if columns else None
    held = answers if type(answers) is list else [answers]
    if "answer_start" not in record or any(type(answer) is dict for answer in held):
        return answers
    return {"text": answers, "answer_start": record["answer_start"]}


def _holds_nothing(cell: Any) -> bool:
    return is_absent(cell) or cell == [] or (type(cell) is str and not cell.strip())
