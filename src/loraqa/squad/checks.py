"""Check parsed JSON and collect every problem instead of stopping at the first."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from loraqa.errors import quote, shortened

MADE_ID = "made-"
"""How the ids begin that are made from the content. Messages leave them out: no file has them."""

LISTED = 20
"""How many problems a message lists."""

_FORBIDDEN = re.compile("[\x00\ud800-\udfff]")
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
    """A place in a source.

    Attributes:
        path: JSON path, relative to the record if there is one.
        record: line or row of the record, for sources with one question per record.
        id: the question's id, if known.
    """

    path: str = ""
    record: str = ""
    id: str | None = None

    def inside(self, part: str) -> "Place":
        """Return the place of `part`, a key with or without an index, inside this place."""
        return Place(f"{self.path}.{part}" if self.path else part, self.record, self.id)

    def __str__(self) -> str:
        named = "" if self.id is None or self.id.startswith(MADE_ID) else f"id {quote(self.id)}"
        return ", ".join(filter(None, (self.record, self.path, named)))


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem: its place and the reason."""

    place: Place
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}".removeprefix(": ")


@dataclass(frozen=True, slots=True)
class Unplaced(Problem):
    """An answer that has no place in its context, or none that is known.

    Attributes:
        text: the answer.
        repeated: whether the context contains it more than once, and the data name no offset.
    """

    text: str
    repeated: bool


class Checks:
    """Checks that collect problems in the order of the source."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def report(self, place: Place, reason: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(place, reason))

    def has_type(self, value: Any, kind: type, place: Place) -> bool:
        """Return whether `value` has exactly type `kind`, and report a problem if not.

        A bool is not an int here.
        """
        if type(value) is kind:
            return True
        self.report(place, f"is {_type_name(type(value))}, must be {_type_name(kind)}")
        return False

    def field(self, node: dict[str, Any], key: str, kind: type, place: Place) -> Any:
        """Return `node[key]`; report a problem and return None if it is missing or mistyped."""
        if key not in node:
            self.report(place, f"{key!r} is missing")
            return None
        value = node[key]
        # `inside` is evaluated only on a problem, because every question has five fields.
        if type(value) is kind or self.has_type(value, kind, place.inside(key)):
            return value
        return None

    def text(self, node: dict[str, Any], key: str, place: Place) -> str | None:
        """Return a text that is neither blank nor holds what no text holds, or report a problem."""
        text = self.field(node, key, str, place)
        if text is None:
            return None
        if not text.strip():
            self.report(place, f"the {key} is empty")
            return None
        return text if self.is_clean(text, key, place) else None

    def is_clean(self, text: str, key: str, place: Place) -> bool:
        """Return whether a text has no NUL and no half of a character, or report a problem."""
        found = _FORBIDDEN.search(text)
        if not found:
            return True
        code = ord(found[0])
        name = "lone surrogate" if code >= 0xD800 else "control character"
        self.report(place, f"the {key} has a {name} (U+{code:04X}) at character {found.start()}")
        return False


def listing(source: str, problems: Sequence[Problem], count: int | None = None) -> str:
    """Return the first problems, one per line, and the number of the others.

    `count` is the number of all problems, if there are more than these.
    """
    count = count or len(problems)
    lines = [f"{source} has {count} problem{'s' if count > 1 else ''}:"]
    lines += [f"  {source}: {shortened(str(problem), 300)}" for problem in problems[:LISTED]]
    if count > LISTED:
        lines.append(f"  and {count - LISTED} more")
    return "\n".join(lines)


def _type_name(kind: type) -> str:
    return _TYPE_NAMES.get(kind, kind.__name__)
