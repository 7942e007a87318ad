"""The lines of a text file, one by one."""

from collections.abc import Iterator
from pathlib import Path

from loraqa.batch.source import LARGEST_RECORD, Position
from loraqa.errors import InputError
from loraqa.squad.text import BYTE_ORDER_MARK, decode, explaining_unreadable


class Lines:
    """A context manager and iterator over decoded lines, with their ends, from a position on.

    Attributes:
        position: the byte at which the next line begins, and the number of lines before it.
    """

    def __init__(self, path: Path, position: Position) -> None:
        self.position = position
        self._path = path
        self._record = position
        with explaining_unreadable(path):
            self._file = path.open("rb")
            self._file.seek(position[0])

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        offset, number = self.position
        room = LARGEST_RECORD - (offset - self._record[0])
        line = self._file.readline(room + 1)
        if not line:
            raise StopIteration
        if len(line) > room:
            raise InputError(
                f"{self._path}: what begins on line {self._record[1] + 1} has more than "
                f"{LARGEST_RECORD:,} bytes; see whether a line end or quotation mark is missing."
            )
        text = decode(line, str(self._path), number + 1, offset)
        self.position = offset + len(line), number + 1
        return text if offset else text.removeprefix(BYTE_ORDER_MARK)

    def begin_record(self) -> Position:
        """Return the position of the record that begins with the next line."""
        self._record = self.position
        return self.position

    def marking_first(self) -> Iterator[tuple[bool, str]]:
        """Yield each line, and whether it is the first one of its record."""
        while True:
            first = self._record == self.position
            line = next(self, None)
            if line is None:
                return
            yield first, line
