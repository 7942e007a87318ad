"""Read data with one question per record: JSON Lines, CSV, Parquet, and datasets on the hub.

A record has the hub's columns: id, title, context, question, answers.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from loraqa.errors import InputError
from loraqa.squad.checks import Place
from loraqa.squad.intake import Intake
from loraqa.squad.text import explain_json_error

_COLUMNS = ("id", "context", "question", "answers")
_ANSWER_COLUMNS = {"answer_text", "answer_start"}


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
            _read_record(record, Place(record=f"line {number}"), intake)


def read_csv(text: str, source: str, intake: Intake) -> None:
    """Pass every record to `intake`; its place is the line on which it starts.

    The answers are in one column, as JSON or as pandas prints the hub's data, or each record has
    one answer in the columns `answer_text` and `answer_start`.
    """
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    with _fields_of_any_length():
        header = _csv_header(lines, source)
        for place, cells in _csv_records(lines, intake):
            try:
                record = _csv_record(header, cells)
            except ValueError as error:
                intake.report(place, str(error))
                intake.skipped["rows"] += 1
            else:
                _read_record(record, place, intake)


def read_parquet(data: bytes, source: str, intake: Intake) -> None:
    """Pass every record to `intake`; its place is its row number, counted from 0."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        records = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{source} is not a readable Parquet file ({error}).") from None
    _read_table(table.column_names, records, source, intake)


def read_hub(name: str, split: str, intake: Intake) -> None:
    """Pass every record of a split of a dataset on the Hugging Face hub to `intake`.

    Raises:
        InputError: the split cannot be downloaded or read; the message is one sentence.
    """
    try:
        columns, records = _download(name, split)
    # The hub's libraries raise many unrelated types of errors.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"Split {split!r} of {name!r} cannot be read from the Hugging Face hub ({reason}); "
            "check the name and the connection, set HF_HUB_OFFLINE=1 to use an earlier download, "
            "or give a local file (JSON, JSON Lines, CSV or Parquet)."
        ) from error
    _read_table(columns, records, name, intake)


def _download(name: str, split: str) -> tuple[list[str], list[dict[str, Any]]]:
    import datasets
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        # Without a network this fails at once; `load_dataset` would retry for half a minute.
        HfApi().dataset_info(name, timeout=10)
    data = datasets.load_dataset(name, split=split)
    return data.column_names, data.to_list()


def _read_table(
    columns: Collection[str], records: list[dict[str, Any]], source: str, intake: Intake
) -> None:
    _require_columns(columns, source)
    for number, record in enumerate(records):
        _read_record(record, Place(record=f"row {number}"), intake)


def _require_columns(columns: Collection[str], source: str) -> None:
    given = {*columns, "answers"} if _ANSWER_COLUMNS.issubset(columns) else columns
    missing = [column for column in _COLUMNS if column not in given]
    if missing:
        raise InputError(
            f"{source} has no column {' or '.join(map(repr, missing))}; a table of questions needs "
            f"the columns id, title, context, question and answers, but this one has "
            f"{', '.join(map(repr, columns)) or 'none'}."
        )


def _read_record(record: Any, place: Place, intake: Intake) -> None:
    if not intake.has_type(record, dict, place):
        intake.skipped["rows"] += 1
        return
    if type(record.get("id")) is str:
        place = place._replace(id=record["id"])
    context, title = intake.context(record, place), intake.title(record, place)
    answers = _answers(record, place, intake)
    question = {key: record[key] for key in ("id", "question") if key in record}
    question["answers"] = answers
    intake.question(question, place, None if answers is None else context, title)


def _answers(record: dict[str, Any], place: Place, intake: Intake) -> list[Any] | None:
    """Return a list of answers as in official JSON, from the hub's two lists or from such a list.

    Report a problem and return None if the answers have another form.
    """
    if type(record.get("answers")) is list:
        answers: list[Any] = record["answers"]
        return answers
    lists = intake.field(record, "answers", dict, place)
    if lists is None:
        return None
    inner = place.inside("answers")
    texts = intake.field(lists, "text", list, inner)
    starts = intake.field(lists, "answer_start", list, inner)
    if texts is None or starts is None:
        return None
    if len(texts) != len(starts):
        intake.report(inner, f"'text' has {len(texts)} entries, 'answer_start' {len(starts)}")
        return None
    return [
        {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
    ]


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB per field, which applies to the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_header(lines: Any, source: str) -> list[str]:
    try:
        header: list[str] = next(lines, [])
    except csv.Error as error:
        raise InputError(f"{source}, line 1: bad CSV: {error}.") from None
    _require_columns(header, source)
    return header


def _csv_records(lines: Any, intake: Intake) -> Iterator[tuple[Place, list[str]]]:
    """Yield the place and the cells of every record that is not blank."""
    while True:
        place = Place(record=f"line {lines.line_num + 1}")
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            intake.report(place, f"bad CSV: {error}")
            intake.skipped["rows"] += 1
        else:
            if cells:
                yield place, cells


def _csv_record(header: list[str], cells: list[str]) -> dict[str, Any]:
    """Return the record with parsed answers; raise `ValueError` if it cannot be parsed."""
    if len(cells) != len(header):
        raise ValueError(f"has {len(cells)} fields, the first row has {len(header)}")
    record: dict[str, Any] = dict(zip(header, cells, strict=True))
    record["answers"] = (
        _parse_answers(record["answers"]) if "answers" in record else _single_answer(record)
    )
    return record


def _single_answer(record: dict[str, Any]) -> dict[str, Any]:
    """Return the answer in `answer_text` and `answer_start`; no answer if both are empty."""
    text, start = record["answer_text"], record["answer_start"]
    if not text and not start:
        return {"text": [], "answer_start": []}
    # pandas writes whole numbers as 3.0 if the column has gaps.
    whole = re.fullmatch(r"(-?[0-9]{1,18})(\.0)?", start)
    return {"text": [text], "answer_start": [int(whole[1]) if whole else start]}


def _parse_answers(cell: str) -> Any:
    """Parse JSON, or Python literals as pandas prints them, with or without arrays."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_Arrays().visit(ast.parse(cell, mode="eval")))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("the answers are neither JSON nor Python literals") from None


class _Arrays(ast.NodeTransformer):
    """Replaces `array([1, 2], dtype=int32)` by its list."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1:
            return node.args[0]
        return node
