"""Read records of one question each, as JSON has them; other formats bring theirs here.

A record has the hub's columns: id, title, context, question, answers. For the answers there may be
the columns `answer_text` (or `answer`) and `answer_start` instead.
"""

import json
from collections.abc import Collection
from typing import Any

from loraqa.errors import InputError, some_of
from loraqa.squad.checks import Place
from loraqa.squad.golds import is_absent
from loraqa.squad.intake import Intake
from loraqa.squad.text import explain_json_error

# Columns that may hold the answers, the first that there is.
ANSWER_COLUMNS = ("answers", "answer_text", "answer")
KNOWN = {"id", "title", "context", "question", "answer_start", "is_impossible", *ANSWER_COLUMNS}


def read_jsonl(text: str, intake: Intake) -> None:
    """Pass every line to `intake`, except blank ones."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            where, reason = explain_json_error(error, number)
            intake.report(Place(record=where), reason)
            intake.skipped["rows"] += 1
        else:
            read_record(record, Place(record=f"line {number}"), intake)


def read_rows(rows: list[Any], name: str, intake: Intake) -> None:
    """Pass every record of a list to `intake`; its place is its number in the list `name`."""
    for number, row in enumerate(rows):
        read_record(row, Place(record=f"{name}[{number}]"), intake)


def require_columns(columns: Collection[str], source: str) -> None:
    """Raise `InputError` if a table lacks a column that every table of questions needs."""
    missing = [repr(column) for column in ("context", "question") if column not in columns]
    if not any(column in columns for column in ANSWER_COLUMNS):
        missing.append("'answers'")
    if missing:
        given = some_of([repr(column) for column in columns], 12) or "none"
        raise InputError(
            f"{source} has no column {' or '.join(missing)}; a table of questions needs the "
            f"columns context, question, and answers (or answer_text, or answer), with commas, "
            f"semicolons or tabs between them in a CSV file, but this one has {given}."
        )


def read_record(record: Any, place: Place, intake: Intake) -> None:
    """Pass a record to `intake`."""
    if not intake.has_type(record, dict, place):
        intake.skipped["rows"] += 1
        return
    if type(record.get("id")) in (str, int):
        place = place._replace(id=str(record["id"]))
    context, title = intake.context(record, place), intake.title(record, place)
    question = {key: record[key] for key in ("id", "question") if key in record}
    if any(column in record for column in ANSWER_COLUMNS):
        question["answers"] = _answers(record)
    if "is_impossible" in record:
        question["is_impossible"] = record["is_impossible"]
    intake.question(question, place, context, title)


def _answers(record: dict[str, Any]) -> Any:
    """Return the answers of a record; texts with the offsets of the column `answer_start`."""
    # Tables that were joined have the columns of both, and only one of them is filled in a row.
    columns = [column for column in ANSWER_COLUMNS if not _is_empty(record.get(column))]
    answers = record[columns[0]] if columns else None
    if columns and columns[0] != "answers":
        answers = _as_text(answers)
    held = answers if type(answers) is list else [answers]
    if "answer_start" not in record or any(type(answer) is dict for answer in held):
        return answers
    return {"text": answers, "answer_start": record["answer_start"]}


def _is_empty(cell: Any) -> bool:
    return is_absent(cell) or cell in ("", [])


def _as_text(cell: Any) -> Any:
    """Return a number as text, because tables hold years and amounts as numbers."""
    if type(cell) is float and cell.is_integer():
        cell = int(cell)
    return str(cell) if type(cell) in (int, float) else cell
