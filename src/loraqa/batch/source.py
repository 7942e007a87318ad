"""What every format of a table of questions has in common.

A file is read as a stream of records, from its beginning or from any place where a record begins,
and written as one. So a file may be larger than memory.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from loraqa.errors import InputError
from loraqa.squad.checks import Checks, Place

Position = tuple[int, int]
"""Where a record begins: in a text file byte and line, in Parquet row group and row in it."""

Cell = str | int | float | None
"""What a row has in a column that is added."""

LARGEST_RECORD = 2**28
"""The most bytes of a record of a text file."""


class Record(NamedTuple):
    """A row of a table.

    Attributes:
        place: where it is, for messages; no other row has the same.
        position: where it is, to read from there.
        fields: the values of the columns that mean something, by what they mean.
        raw: the whole row, as the writer of its format takes it.
        size: how many bytes the row has.
    """

    place: Place
    position: Position
    fields: dict[str, Any]
    raw: Any
    size: int


class Reply(NamedTuple):
    """What is added to a row: the answer, its place in the context, and how far to trust it.

    Attributes:
        answer: the answer; empty for "no answer", and None if the row was skipped.
        start, end: where it stands in the context; None if it does not.
        confidence: as in `Answered`.
        probability: the model's own probability, which orders answers: the middle of the bounds of
            the answer's share, or if no spans were searched, the probability of its tokens.
        problem: in a sentence, why the row was skipped; None if it was not.
    """

    answer: str | None
    start: int | None
    end: int | None
    confidence: float | None
    probability: float | None
    problem: str | None


class Column(NamedTuple):
    """A column that is added.

    Attributes:
        kind: what it holds besides None.
        cell: returns what it holds for a reply. It can be pickled, as readers on other machines are
            sent the table.
    """

    kind: type[str] | type[int] | type[float]
    cell: Callable[[Reply], Cell]


COLUMNS: Mapping[str, Column] = {
    "answer": Column(str, attrgetter("answer")),
    "start": Column(int, attrgetter("start")),
    "end": Column(int, attrgetter("end")),
    "confidence": Column(float, attrgetter("confidence")),
    "probability": Column(float, attrgetter("probability")),
    "problem": Column(str, attrgetter("problem")),
}
"""The columns that are added to every table, by their names."""


def added_cells(added: Mapping[str, Column], reply: Reply) -> list[Cell]:
    """Return what is added to a row."""
    return [column.cell(reply) for column in added.values()]


def skipped(problem: str) -> Reply:
    """Return the reply to a row that was skipped."""
    return Reply(None, None, None, None, None, problem)


class Writer(Protocol):
    """Writes rows with their replies."""

    def write(self, raws: Sequence[Any], replies: Sequence[Reply]) -> None: ...


class Source(Protocol):
    """A table of questions.

    Attributes:
        path: the file.
        start: the position of the first record.
        suffixes: how names of files in this format end.
    """

    path: Path
    start: Position
    suffixes: tuple[str, ...]

    def records(self, position: Position, checks: Checks) -> Iterator[Record]:
        """Yield the records from a position on; report what is not one to `checks`."""
        ...

    def writing(self, path: Path) -> AbstractContextManager[Writer]:
        """Return a writer of a file in the same format."""
        ...


def check_nothing_is_overwritten(
    columns: Collection[str], added: Collection[str], where: str
) -> None:
    """Raise `InputError` if a column has the name of one that is added."""
    for name in added:
        if name in columns:
            raise InputError(
                f"{where} has a column {name!r} already, and the answers add one of this name; put "
                "another text before the names of theirs (--prefix)."
            )
