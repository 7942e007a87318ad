"""Read data with one question per record: JSON, CSV, Parquet, Arrow, and datasets on the hub.

A record has the hub's columns: id, title, context, question, answers. For the answers there may be
the columns `answer_text` (or `answer`) and `answer_start` instead.
"""

import ast
import csv
import io
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from loraqa.errors import InputError, in_a_line, some_of
from loraqa.squad.checks import Place
from loraqa.squad.golds import is_absent
from loraqa.squad.intake import Intake
from loraqa.squad.text import explain_json_error

# Columns that may hold the answers, the first that there is.
_ANSWER_COLUMNS = ("answers", "answer_text", "answer")
_KNOWN = {"id", "title", "context", "question", "answer_start", "is_impossible", *_ANSWER_COLUMNS}
_DELIMITERS = ",;\t"


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


def read_rows(rows: list[Any], name: str, intake: Intake) -> None:
    """Pass every record of a list to `intake`; its place is its number in the list `name`."""
    for number, row in enumerate(rows):
        _read_record(row, Place(record=f"{name}[{number}]"), intake)


def read_csv(text: str, source: str, intake: Intake) -> None:
    """Pass every record to `intake`; its place is the line on which it starts.

    Commas, semicolons or tabs are between the cells. The answers are JSON, or as pandas prints the
    hub's data, or plain text.
    """
    delimiter = _delimiter(text)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
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


def _delimiter(text: str) -> str:
    """Return the delimiter with which the first line has the most known columns."""
    first = text.partition("\n")[0]

    def known(delimiter: str) -> int:
        cells = (cell.strip().strip('"') for cell in first.split(delimiter))
        return sum(cell in _KNOWN for cell in cells)

    return max(_DELIMITERS, key=known)


def read_parquet(data: bytes, source: str, intake: Intake) -> None:
    """Pass every record to `intake`; its place is its row number, counted from 0."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        records = _records(table)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = in_a_line(error)
        raise InputError(f"{source} is not a readable Parquet file ({reason}).") from None
    _read_table(table.column_names, records, source, intake)


def read_arrow(data: bytes, source: str, intake: Intake) -> None:
    """Pass every record of an Arrow file or stream to `intake`; places as in `read_parquet`."""
    import pyarrow

    try:
        if data.startswith(b"ARROW1"):
            table = pyarrow.ipc.open_file(pyarrow.BufferReader(data)).read_all()
        else:
            table = pyarrow.ipc.open_stream(pyarrow.BufferReader(data)).read_all()
        records = _records(table)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{source} is not a readable Arrow file ({in_a_line(error)}).") from None
    _read_table(table.column_names, records, source, intake)


def _records(table: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow table.

    Offsets in a damaged file may point anywhere, and following them would end the process.

    Raises:
        ArrowInvalid: the table is damaged.
    """
    table.validate(full=True)
    records: list[dict[str, Any]] = table.to_pylist()
    return records


class Frame(Protocol):
    """A pandas DataFrame."""

    columns: Any

    def to_dict(self, orient: Any) -> Any: ...


def read_frame(table: list[dict[str, Any]] | Frame, source: str, intake: Intake) -> None:
    """Pass every record of a list of dicts or of a pandas DataFrame to `intake`."""
    records = table if isinstance(table, list) else table.to_dict("records")
    if not isinstance(table, list):
        _require_columns(list(table.columns), source)
    for number, record in enumerate(records):
        _read_record(_plain(record), Place(record=f"row {number}"), intake)


def _plain(value: Any) -> Any:
    """Return NumPy's arrays and scalars, at any depth, as plain Python values."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


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
    missing = [repr(column) for column in ("context", "question") if column not in columns]
    if not any(column in columns for column in _ANSWER_COLUMNS):
        missing.append("'answers'")
    if missing:
        given = some_of([repr(column) for column in columns], 12) or "none"
        raise InputError(
            f"{source} has no column {' or '.join(missing)}; a table of questions needs the "
            f"columns context, question, and answers (or answer_text, or answer), with commas, "
            f"semicolons or tabs between them in a CSV file, but this one has {given}."
        )


def _read_record(record: Any, place: Place, intake: Intake) -> None:
    if not intake.has_type(record, dict, place):
        intake.skipped["rows"] += 1
        return
    if type(record.get("id")) in (str, int):
        place = place._replace(id=str(record["id"]))
    context, title = intake.context(record, place), intake.title(record, place)
    question = {key: record[key] for key in ("id", "question") if key in record}
    if any(column in record for column in _ANSWER_COLUMNS):
        question["answers"] = _answers(record)
    if "is_impossible" in record:
        question["is_impossible"] = record["is_impossible"]
    intake.question(question, place, context, title)


def _answers(record: dict[str, Any]) -> Any:
    """Return the answers of a record; texts with the offsets of the column `answer_start`."""
    # Tables that were joined have the columns of both, and only one of them is filled in a row.
    columns = [column for column in _ANSWER_COLUMNS if not _is_empty(record.get(column))]
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
    header = [name.strip() for name in header]
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
    for column in (*_ANSWER_COLUMNS, "answer_start"):
        if column in record:
            record[column] = _parse_answers(record[column])
    return {
        name: cell for name, cell in record.items() if cell != "" or name not in ("id", "title")
    }


def _parse_answers(cell: str) -> Any:
    """Parse JSON, or Python literals as pandas prints them, with or without arrays.

    Other text is an answer itself; pandas may write "nan" where there is none.
    """
    if not cell.lstrip().startswith(("{", "[", "array(")):
        return "" if cell.strip().lower() == "nan" else cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_Arrays().visit(ast.parse(cell.strip(), mode="eval")))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("the answers are neither JSON nor Python literals") from None


class _Arrays(ast.NodeTransformer):
    """Replaces `array([1, 2], dtype=int32)` by its list, and `np.int64(1)` by its number."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name in ("array", "int64", "int32", "str_") and len(node.args) == 1:
            argument: ast.AST = self.visit(node.args[0])
            return argument
        return node
