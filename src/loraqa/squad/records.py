"""Read records of one question each, of every format.

A record has the hub's columns: id, title, context, question, answers. For the answers there may be
the columns `answer_text` (or `answer`) and `answer_start` instead.
"""

from typing import Any

from loraqa.squad.checks import Place
from loraqa.squad.columns import ANSWER_COLUMNS, by_meaning, column
from loraqa.squad.golds import is_absent
from loraqa.squad.intake import Intake, given_id
from loraqa.squad.literals import parse_answers, parse_offsets


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


def read_record(record: Any, place: Place, intake: Intake) -> None:
    """Pass a record to `intake`."""
    if not intake.has_type(record, dict, place):
        intake.skipped["rows"] += 1
        return
    try:
        record = _parsed(by_meaning(record))
    except ValueError as error:
        intake.report(place, str(error))
        intake.skipped["rows"] += 1
        return
    place = place._replace(id=given_id(record))
    context, title = intake.context(record, place), intake.title(record, place)
    keys = ("id", "question", "is_impossible", "is_answerable")
    question = {key: record[key] for key in keys if key in record}
    text_column = ""
    if record.keys() & set(ANSWER_COLUMNS):
        question["answers"], text_column = _answers(record)
    intake.question(question, place, context, title, text_column)


def _parsed(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with its answers and offsets parsed where they are text."""
    context = record.get("context")
    for name, cell in record.items():
        if type(cell) is str and name in ANSWER_COLUMNS:
            record[name] = parse_answers(cell, context if type(context) is str else "")
        elif type(cell) is str and name == "answer_start":
            record[name] = parse_offsets(cell)
    return record


def _answers(record: dict[str, Any]) -> tuple[Any, str]:
    """Return the answers of a record: texts, with the offsets of the column `answer_start`.

    The column of the texts follows; it is empty for answers that hold their offsets.
    """
    # Tables that were joined have the columns of both, and only one of them is filled in a row.
    columns = [name for name in ANSWER_COLUMNS if name in record]
    filled = [name for name in columns if not _holds_nothing(record[name])]
    answers = record[filled[0]] if filled else None
    held = answers if type(answers) is list else [answers]
    if any(type(answer) is dict for answer in held):
        return answers, ""
    if "answer_start" in record:
        answers = {"text": answers, "answer_start": record["answer_start"]}
    return answers, (filled or columns)[0]


def _holds_nothing(cell: Any) -> bool:
    return is_absent(cell) or cell in ([], {}) or (type(cell) is str and not cell.strip())
