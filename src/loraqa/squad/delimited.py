"""Read CSV: one record per row, with commas, semicolons or tabs between the cells."""

import ast
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loraqa.errors import InputError
from loraqa.squad.checks import Place
from loraqa.squad.intake import Intake
from loraqa.squad.records import ANSWER_COLUMNS, KNOWN, read_record, require_columns

_DELIMITERS = ",;\t"


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
                read_record(record, place, intake)


def _delimiter(text: str) -> str:
    """Return the delimiter with which the first line has the most known columns."""
    first = text.partition("\n")[0]

    def known(delimiter: str) -> int:
        cells = (cell.strip().strip('"') for cell in first.split(delimiter))
        return sum(cell in KNOWN for cell in cells)

    return max(_DELIMITERS, key=known)


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
    require_columns(header, source)
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
    for column in (*ANSWER_COLUMNS, "answer_start"):
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
