"""Parse names of strategies: `greedy`, `temperature:0.7+top-k:40`, `beam:4`, `span`.

Importing this and checking a name load no PyTorch, so a wrong name is reported at once.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from loraqa.errors import InputError, did_you_mean, quote

if TYPE_CHECKING:
    from loraqa.answer.decode import Strategy

MAX_BEAMS = 32
"""The most beams. Each is a row of the batch."""
MAX_SAMPLES = 100
"""The most answers that a question can have."""

# A number that is written out exactly; neither an exponent, nor an infinity, nor Unicode digits.
_NUMBER = re.compile(r"(?=[0-9.]{1,7}$)[0-9]*\.?[0-9]+")


@dataclass(frozen=True)
class _Parameter:
    """The number after a strategy's name: its default and its range, both ends included."""

    default: float
    least: float
    most: float
    whole: bool = False

    def parse(self, name: str, text: str | None) -> float:
        """Return the number in `text`, or the default if `text` is None."""
        if text is None:
            return self.default
        value = float(text) if _NUMBER.fullmatch(text) else None
        if value is None or not self.least <= value <= self.most:
            raise self._refused(name, text)
        if self.whole and not value.is_integer():
            raise self._refused(name, text)
        return value

    def _refused(self, name: str, text: str) -> InputError:
        kind = "a whole number" if self.whole else "a number of at most 6 digits"
        return InputError(
            f"The strategy {quote(f'{name}:{text}')} is out of range; {name} takes {kind} from "
            f"{self.least:g} to {self.most:g}, as in {name}:{self.default:g}."
        )


# In the order in which they are applied, which is transformers' order.
_FILTERS = {
    "temperature": _Parameter(0.7, 0.01, 100),
    "top-k": _Parameter(40, 1, 100_000, whole=True),
    "top-p": _Parameter(0.9, 0.0001, 0.9999),
    "min-p": _Parameter(0.05, 0.0001, 1),
    "typical": _Parameter(0.95, 0.0001, 0.9999),
}
_WIDTH = _Parameter(4, 1, MAX_BEAMS, whole=True)
# The default stands in messages only: without a number the search has no limit.
_PATHS = _Parameter(1000, 1, 999_999, whole=True)
_PARAMETERS = {**_FILTERS, "beam": _WIDTH, "span": _PATHS}

STRATEGIES = ("greedy", *_FILTERS, "beam", "span")
"""The names that `parse_strategy` knows."""
DEFAULT_STRATEGY = "span"
"""Answers are pieces of their context, and span search gives the best scores (docs/quality.md)."""


GRID = (
    "span,greedy,beam:4,temperature:0.3|0.7|1|1.5,top-k:5|40,top-p:0.5|0.9,min-p:0.05|0.2,"
    "typical:0.2|0.95,temperature:1.5+min-p:0.1"
)
"""What `grid` stands for in a list of strategies: one in front, then others to compare with it."""


def strategy_names(text: str) -> list[str]:
    """Return the names in a list with commas between, each once.

    `top-p:0.5|0.9` is short for `top-p:0.5,top-p:0.9`, and `grid` for `GRID`. The names are not
    checked.
    """
    parts = ",".join(GRID if part.strip() == "grid" else part for part in text.split(","))
    return list(dict.fromkeys(name for part in parts.split(",") for name in _each_number(part)))


def _each_number(text: str) -> Iterator[str]:
    """Return a strategy for each of the numbers between `|`, in all combinations."""
    choices = []
    for part in text.split("+"):
        name, colon, numbers = part.strip().partition(":")
        choices.append([f"{name}{colon}{number}" for number in numbers.split("|")])
    return map("+".join, product(*choices))


def check_strategy(text: str) -> None:
    """Raise `InputError` if `parse_strategy` would; loads no PyTorch."""
    _read(text)


def parse_strategy(text: str) -> "Strategy":
    """Return the strategy named `text`; some names take a number after a colon.

    Sampling filters can be joined, as in `temperature:0.7+top-p:0.9`. They are always applied in
    transformers' order: temperature, top-k, top-p, min-p, typical.

    Raises:
        InputError: an unknown name, a number out of range, or names that cannot be joined.
    """
    from loraqa.answer.beam import BeamSearch
    from loraqa.answer.decode import Greedy
    from loraqa.answer.span import SpanSearch

    numbers = _read(text)
    if "greedy" in numbers:
        return Greedy()
    if "span" in numbers:
        return SpanSearch(numbers["span"])
    if "beam" in numbers:
        return BeamSearch(int(numbers["beam"]))
    return _sampling(numbers)


def _sampling(numbers: Mapping[str, float]) -> "Strategy":
    from loraqa.answer import filters
    from loraqa.answer.decode import Sampling

    functions = {
        "temperature": filters.temperature,
        "top-k": filters.top_k,
        "top-p": filters.top_p,
        "min-p": filters.min_p,
        "typical": filters.typical,
    }
    given = [(name, numbers[name]) for name in _FILTERS if name in numbers]
    return Sampling(
        name="+".join(f"{name}:{value:g}" for name, value in given),
        filters=tuple(
            (functions[name], int(value) if value.is_integer() else value) for name, value in given
        ),
    )


def _read(text: str) -> dict[str, float]:
    """Return the names in `text` with their numbers; NaN for names that take none."""
    numbers: dict[str, float] = {}
    for part in text.split("+"):
        name, colon, number = part.strip().partition(":")
        if name in numbers:
            raise InputError(f"The strategy {quote(text)} names {name} twice; name it once.")
        numbers[name] = _number(name, number if colon else None)
    if len(numbers) > 1 and not numbers.keys() <= _FILTERS.keys():
        raise InputError(
            f"{quote(text)} joins strategies that cannot be joined; only "
            f"{', '.join(_FILTERS)} can be."
        )
    return numbers


def _number(name: str, text: str | None) -> float:
    if name not in STRATEGIES:
        raise InputError(
            f"There is no strategy {quote(name)}{did_you_mean(name, STRATEGIES)}; there are "
            f"{', '.join(STRATEGIES)}, some with a number, as in top-p:0.9."
        )
    if name == "span" and text is None:
        return math.inf
    if name in _PARAMETERS:
        return float(_PARAMETERS[name].parse(name, text))
    if text is not None:
        raise InputError(f"The strategy {name} takes no number; write {name} alone.")
    return float("nan")
