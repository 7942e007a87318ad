"""Read CSV: one record per row, with a delimiter between the cells."""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loraqa.errors import InputError
from loraqa.squad.checks import Place
from loraqa.squad.columns import check_columns, column
from loraqa.squad.golds import is_empty
from loraqa.squad.intake import Intake
from loraqa.squad.records import read_record

_DELIMITERS = ",;\t|"
HINT = ", with commas, semicolons, tabs or | between them"
"""What else may be wrong where a column is missing."""
SEP = re.compile(r'"?sep=([^"\r\n])"?[ \t]*(?=[\r\n]|\Z)', re.IGNORECASE)
"""The first line in which Excel names the delimiter."""
_FIRST_LINE_WITH_TEXT = re.compile(r"[^\r\n]*\w[^\r\n]*")


def read_csv(text: str, source: str, intake: Intake) -> None:
    """Pass every record to `intake`; its place is the line on which it starts.

    Commas, semicolons, tabs or vertical bars are between the cells.
    """
    sep = SEP.match(text)
    if sep:
        text = text[sep.end() :]
    delimiter = sep[1] if sep else find_delimiter(text)
    text = without_blanks_around_quotes(text, delimiter)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    with fields_of_any_length():
        header = _header(lines, source)
        for place, cells in _rows(lines, intake):
            try:
                record = record_of(header, cells)
            except ValueError as error:
                intake.report(place, str(error))
                intake.skipped["rows"] += 1
            else:
                read_record(record, place, intake)


def find_delimiter(text: str) -> str:
    """Return the delimiter with which the first line with text has the most known columns."""
    first = _FIRST_LINE_WITH_TEXT.search(text)
    names = first[0] if first else ""

    def known(delimiter: str) -> int:
        return sum(column(name) is not None for name in names.split(delimiter))

    return max(_DELIMITERS, key=known)


def without_blanks_around_quotes(text: str, delimiter: str) -> str:
    """Remove blanks between delimiters and quotation marks, where `csv` takes them for text."""
    blanks = r"[ ]*" if delimiter == "\t" else r"[ \t]*"
    end = re.escape(delimiter)
    quoted = rf'(\A|{end}|[\r\n]){blanks}("[^"]*(?:""[^"]*)*"){blanks}(?={end}|[\r\n]|\Z)'
    return re.sub(quoted, r"\1\2", text)


@contextmanager
def fields_of_any_length() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB per field, which applies to the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _header(lines: Any, source: str) -> list[str]:
    """Return the names of the first row that is not blank."""
    try:
        header: list[str] = next(filter(has_text, lines), [])
    except csv.Error as error:
        raise InputError(f"{source}, line {lines.line_num}: bad CSV: {error}.") from None
    header = [name.strip() for name in header]
    check_columns(header, source, HINT)
    return header


def _rows(lines: Any, intake: Intake) -> Iterator[tuple[Place, list[str]]]:
    """Yield the place and the cells of every row that is not blank."""
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
            if has_text(cells):
                yield place, cells


def has_text(cells: list[str]) -> bool:
    """Return whether a row is not blank."""
    return any(map(str.strip, cells))


def record_of(header: list[str], cells: list[str]) -> dict[str, Any]:
    """Return the record; raise `ValueError` if it has not as many cells as the header."""
    if len(cells) < len(header) or has_text(cells[len(header) :]):
        raise ValueError(f"has {len(cells)} fields, the first row has {len(header)}")
    cells = ["" if is_empty(cell) else cell for cell in cells]
    return dict(zip(header, cells, strict=False))
