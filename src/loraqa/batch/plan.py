"""Divide a file into parts, and read them."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from loraqa.batch.source import Position, Record, Source
from loraqa.errors import InputError, counted
from loraqa.squad.checks import LISTED, Checks, Place, Problem, listing
from loraqa.squad.intake import given_id

logger = logging.getLogger("loraqa")

DEFAULT_ROWS = 1000
"""How many rows a part has."""

# A part ends where it has so many bytes.
_LARGEST = 2**26


class Asked(NamedTuple):
    """What a row asks."""

    context: str
    question: str


@dataclass(frozen=True)
class Part:
    """Rows that are answered together.

    Attributes:
        number: the number of the part, from 0 on.
        first: the number of its first row, from 0 on.
        rows: how many rows it has.
        position: where they begin in the file.
        sha256: of their contexts and questions, in hex.
    """

    number: int
    first: int
    rows: int
    position: Position
    sha256: str

    def __str__(self) -> str:
        return f"rows {self.first + 1:,} to {self.first + self.rows:,}"


@dataclass(frozen=True)
class Plan:
    """The parts of a file.

    Attributes:
        source: the file.
        parts: the parts, in order.
        skipped: how many of their rows have a problem, and are not answered.
        left_out: how many rows are no records, and belong to no part.
    """

    source: Source
    parts: tuple[Part, ...]
    skipped: int
    left_out: int

    @property
    def rows(self) -> int:
        """How many rows all parts have."""
        return sum(part.rows for part in self.parts)


def make_plan(
    source: Source, rows: int = DEFAULT_ROWS, on_bad: Literal["stop", "skip"] = "stop"
) -> Plan:
    """Read the whole file, check every row, and divide it into parts.

    A part ends where the context changes after `rows` rows; at the latest after twice as many, or
    where it has 64 MiB. So rows of one context stay together.

    Raises:
        InputError: the file cannot be read, has no usable questions, or has problems and `on_bad`
            is "stop".
    """
    checks = _FirstProblems()
    parts: list[Part] = []
    group: _Group | None = None
    skipped = without_context = 0
    # Problems of records; the others are of rows that are none.
    of_records = 0
    for record in source.records(source.start, checks):
        before = checks.count
        asked = asked_by(record, checks)
        of_records += checks.count - before
        skipped += asked is None
        without_context += "context" not in record.fields
        if group is not None and group.is_full(rows, asked):
            parts.append(group.as_part_after(parts))
            group = None
        group = group or _Group(record.position)
        group.add(record, asked)
    if group is not None:
        parts.append(group.as_part_after(parts))
    plan = Plan(source, tuple(parts), skipped, checks.count - of_records)
    if plan.rows and without_context == plan.rows:
        raise InputError(
            f"{source.path} has no contexts; add a column context, or name the text that all its "
            "questions are about with --context-file."
        )
    _conclude(plan, checks, on_bad)
    return plan


def chunks(source: Source, parts: Iterable[Part]) -> Iterator[tuple[Part, list[Record]]]:
    """Yield each part with its rows. Parts that follow each other are read in one go.

    Raises:
        InputError: the rows are others than when the plan was made.
    """
    at, records = -1, iter(list[Record]())
    for part in parts:
        if part.first != at:
            records = source.records(part.position, Checks())
        chunk = list(islice(records, part.rows))
        group = _Group(part.position)
        for record in chunk:
            group.add(record, asked_by(record, Checks()))
        if group.sha256 != part.sha256:
            raise InputError(
                f"{source.path} has changed while it was read; give the same command again."
            )
        yield part, chunk
        at = part.first + part.rows


def named_place(record: Record) -> Place:
    """Return where a row is, with the id that it gives itself, for a message."""
    return record.place._replace(id=given_id(record.fields))


def asked_by(record: Record, checks: Checks) -> Asked | None:
    """Return what a row asks, or report a problem and return None."""
    place = named_place(record)
    context = checks.text(record.fields, "context", place)
    question = checks.text(record.fields, "question", place)
    return None if context is None or question is None else Asked(context, question)


def asked_or_problem(record: Record) -> Asked | str:
    """Return what a row asks, or in a sentence why it asks nothing."""
    checks = Checks()
    asked = asked_by(record, checks)
    # The sentence stands in the row itself, so it does not name the row.
    reasons = [str(Problem(Place(each.place.path), each.reason)) for each in checks.problems]
    problem = "; ".join(reasons)
    return asked or f"{problem[:1].upper()}{problem[1:]}."


class _Group:
    """Rows that are becoming a part."""

    def __init__(self, position: Position) -> None:
        self._position = position
        self._rows = 0
        self._size = 0
        self._context: str | None = None
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def add(self, record: Record, asked: Asked | None) -> None:
        self._rows += 1
        self._size += record.size
        # A long text that many rows share is hashed once.
        same = asked is not None and asked.context == self._context
        told = asked and [None if same else asked.context, asked.question]
        self._digest.update(json.dumps(told).encode())
        self._context = asked and asked.context

    def is_full(self, rows: int, asked: Asked | None) -> bool:
        """Return whether the group ends before a row."""
        same = asked is not None and asked.context == self._context
        return self._size >= _LARGEST or self._rows >= (2 * rows if same else rows)

    def as_part_after(self, parts: list[Part]) -> Part:
        first = parts[-1].first + parts[-1].rows if parts else 0
        return Part(len(parts), first, self._rows, self._position, self.sha256)


class _FirstProblems(Checks):
    """Keeps the problems that a message lists, and counts all."""

    count = 0

    def report(self, place: Place, reason: str) -> None:
        self.count += 1
        if len(self.problems) < LISTED:
            super().report(place, reason)


def _conclude(plan: Plan, checks: _FirstProblems, on_bad: str) -> None:
    if checks.count:
        told = listing(str(plan.source.path), checks.problems, checks.count)
        if on_bad == "stop":
            raise InputError(f"{told}\nCorrect them, or skip them with --on-bad skip.")
        logger.warning("%s", told)
        logger.warning(
            f"{plan.source.path}: {counted(plan.skipped, 'row')} will have no answer, and "
            f"{counted(plan.left_out, 'row')} that cannot be read will be left out."
        )
    if plan.skipped == plan.rows:
        raise InputError(
            f"{plan.source.path} has no usable questions; correct it or name other data."
        )
