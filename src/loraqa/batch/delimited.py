"""CSV, read and written row by row."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from loraqa.batch.lines import Lines
from loraqa.batch.source import (
    Column,
    Position,
    Record,
    Reply,
    added_cells,
    check_nothing_is_overwritten,
)
from loraqa.errors import InputError
from loraqa.squad.checks import Checks, Place
from loraqa.squad.columns import by_meaning, check_columns_to_answer
from loraqa.squad.delimited import (
    HINT,
    SEP,
    fields_of_any_length,
    find_delimiter,
    has_text,
    record_of,
    without_blanks_around_quotes,
)
from loraqa.squad.text import BYTE_ORDER_MARK

_CSV_LINE_END = "\r\n"


class Delimited:
    """A CSV file. What is written has its delimiter, line ends and byte order mark."""

    suffixes: tuple[str, ...] = (".csv", ".tsv")

    def __init__(self, path: Path, added: Mapping[str, Column], needed: Sequence[str]) -> None:
        self.path = path
        self._added = added
        with Lines(path, (0, 0)) as lines:
            first = next(lines, "")
            after_first = lines.position
            line = next(filter(str.strip, chain([first], lines)), "")
        sep = SEP.match(first)
        self._preamble = first if sep else ""
        self._delimiter = sep[1] if sep else find_delimiter(line)
        self._line_end = "\r\n" if first.endswith("\r\n") else "\n"
        self._header, self.start = self._read_header(after_first if sep else (0, 0))
        names = [name.strip() for name in self._header]
        check_columns_to_answer(names, needed, str(path), HINT)
        check_nothing_is_overwritten(names, self._added, str(path))

    def records(self, position: Position, checks: Checks) -> Iterator[Record]:
        """Yield the rows that are not blank, from a position on."""
        names = [name.strip() for name in self._header]
        with Lines(self.path, position) as lines:
            for place, at, cells in self._rows(lines, checks):
                try:
                    fields = by_meaning(record_of(names, cells))
                except ValueError as error:
                    checks.report(place, str(error))
                else:
                    size = lines.position[0] - at[0]
                    yield Record(place, at, fields, cells[: len(names)], size)

    @contextmanager
    def writing(self, path: Path) -> Iterator["_Writer"]:
        """Write a file with the same columns and those that are added."""
        with path.open("w", encoding="utf-8", newline="") as file:
            if self._has_mark():
                file.write(BYTE_ORDER_MARK)
            file.write(self._preamble)
            # Of \r and \n, the csv module quotes only what its own line end has.
            ending = _Ending(file, self._line_end)
            rows = csv.writer(ending, delimiter=self._delimiter, lineterminator=_CSV_LINE_END)
            rows.writerow([*self._header, *self._added])
            yield _Writer(rows, self._added)

    def _has_mark(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(3) == BYTE_ORDER_MARK.encode()

    def _read_header(self, start: Position) -> tuple[list[str], Position]:
        """Return the first row that is not blank, and where the next one begins."""
        checks = Checks()
        with Lines(self.path, start) as lines:
            header: list[str] = next((cells for *_, cells in self._rows(lines, checks)), [])
            if checks.problems:
                raise InputError(f"{self.path}, {checks.problems[0]}.")
            if not header:
                raise InputError(f"{self.path} is empty; name another file.")
            return header, lines.position

    def _rows(self, lines: Lines, checks: Checks) -> Iterator[tuple[Place, Position, list[str]]]:
        """Yield place, position and cells of every row that is not blank."""
        rows = csv.reader(self._without_blanks(lines), strict=True, delimiter=self._delimiter)
        while True:
            at = lines.begin_record()
            place = Place(record=f"line {at[1] + 1}")
            try:
                with fields_of_any_length():
                    cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                checks.report(place, f"bad CSV: {error}")
            else:
                if has_text(cells):
                    yield place, at, cells

    def _without_blanks(self, lines: Lines) -> Iterator[str]:
        """Yield lines without blanks around the quotes of cells that end on a row's first line.

        What follows may be inside of a cell.
        """
        for first, line in lines.marking_first():
            quoted = first and '"' in line
            yield without_blanks_around_quotes(line, self._delimiter) if quoted else line


class _Ending:
    """Gives rows of the csv module another line end."""

    def __init__(self, file: IO[str], line_end: str) -> None:
        self._file, self._line_end = file, line_end

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix(_CSV_LINE_END) + self._line_end)


class _Writer:
    def __init__(self, rows: Any, added: Mapping[str, Column]) -> None:
        self._rows, self._added = rows, added

    def write(self, raws: Sequence[list[str]], replies: Sequence[Reply]) -> None:
        """Write rows of cells."""
        for raw, reply in zip(raws, replies, strict=True):
            self._rows.writerow([*raw, *added_cells(self._added, reply)])
