"""Checks on parsed JSON that collect every problem instead of stopping at the first."""

from dataclasses import dataclass
from typing import Any, NamedTuple

_LISTED = 20
_TYPE_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class Place(NamedTuple):
    """Where in a source: a JSON path, in tables inside a row; the question's id where known."""

    path: str = ""
    row: str = ""
    id: str | None = None

    def inside(self, part: str) -> "Place":
        """The place of `part`, a key with or without an index, of what stands here."""
        return Place(f"{self.path}.{part}" if self.path else part, self.row, self.id)

    def __str__(self) -> str:
        named = "" if self.id is None else f"id {self.id!r}"
        return ", ".join(filter(None, (self.row, self.path, named)))


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where."""

    place: Place
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}".removeprefix(": ")


class Checks:
    """Tries what is asked of it and notes each problem, in the order of the source."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def report(self, place: Place, reason: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(place, reason))

    def has_type(self, value: Any, kind: type, place: Place) -> bool:
        """Whether `value` is of exactly this type (True is no whole number), else a problem."""
        if type(value) is kind:
            return True
        self.report(place, f"is {_type_name(type(value))}, must be {_type_name(kind)}")
        return False

    def field(self, node: dict[str, Any], key: str, kind: type, place: Place) -> Any:
        """`node[key]`, or None and a problem where it is missing or of another type."""
        if key not in node:
            self.report(place, f"{key!r} is missing")
            return None
        value = node[key]
        # A place is made only where something is wrong: there are five fields to a question.
        if type(value) is kind or self.has_type(value, kind, place.inside(key)):
            return value
        return None

    def listing(self, source: str) -> str:
        """The first problems, one a line, and how many more there are."""
        count = len(self.problems)
        lines = [f"{source} has {count} problem{'s' if count > 1 else ''}:"]
        lines += [f"  {source}: {problem}" for problem in self.problems[:_LISTED]]
        if count > _LISTED:
            lines.append(f"  and {count - _LISTED} more")
        return "\n".join(lines)


def _type_name(kind: type) -> str:
    return _TYPE_NAMES.get(kind, kind.__name__)
