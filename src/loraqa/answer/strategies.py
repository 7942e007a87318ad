"""Parse names of strategies: `greedy`, `temperature:0.7+top-k:40`, `beam:4`, `span`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from loraqa.answer import filters
from loraqa.answer.beam import BeamSearch
from loraqa.answer.decode import Filter, Greedy, Sampling, Strategy
from loraqa.answer.span import SpanSearch
from loraqa.errors import InputError


@dataclass(frozen=True)
class _Parameter:
    """The number after a strategy's name: its default and its range."""

    default: float
    allowed: str
    allows: Callable[[float], bool]

    def parse(self, name: str, text: str | None) -> float:
        """Return the number in `text`, or the default if `text` is None."""
        try:
            value = self.default if text is None else float(text)
        except ValueError:
            value = math.nan
        if not self.allows(value):
            raise InputError(
                f"The strategy {name}:{text} is out of range; {name} takes {self.allowed}, as in "
                f"{name}:{self.default:g}."
            )
        return value


_MASS = "a number above 0 and below 1"

# In the order in which they are applied, which is transformers' order.
_FILTERS: dict[str, tuple[Filter, _Parameter]] = {
    "temperature": (
        filters.temperature,
        _Parameter(0.7, "a number from 0.01 to 100", lambda value: 0.01 <= value <= 100),
    ),
    "top-k": (
        filters.top_k,
        _Parameter(40.0, "a whole number from 1", lambda value: value >= 1 and value.is_integer()),
    ),
    "top-p": (filters.top_p, _Parameter(0.9, _MASS, lambda value: 0 < value < 1)),
    "min-p": (
        filters.min_p,
        _Parameter(0.05, "a number above 0, at most 1", lambda value: 0 < value <= 1),
    ),
    "typical": (filters.typical, _Parameter(0.95, _MASS, lambda value: 0 < value < 1)),
}
_WIDTH = _Parameter(
    4.0, "a whole number from 1 to 100", lambda value: 1 <= value <= 100 and value.is_integer()
)

STRATEGIES = ("greedy", *_FILTERS, "beam", "span")
"""The names that `parse_strategy` knows."""


def parse_strategy(text: str) -> Strategy:
    """Return the strategy named `text`; some names take a number after a colon.

    Sampling filters can be joined, as in `temperature:0.7+top-p:0.9`. They are always applied in
    transformers' order: temperature, top-k, top-p, min-p, typical.

    Raises:
        InputError: an unknown name, a number out of range, or names that cannot be joined.
    """
    settings: dict[str, str | None] = {}
    for part in text.split("+"):
        name, colon, number = part.strip().partition(":")
        if name not in STRATEGIES:
            raise InputError(
                f"There is no strategy {name!r}; there are {', '.join(STRATEGIES)}, some with a "
                "number, as in top-p:0.9."
            )
        if name in settings:
            raise InputError(f"The strategy {text!r} names {name} twice; name it once.")
        settings[name] = number if colon else None
    if settings.keys() <= _FILTERS.keys():
        return _sampling(settings)
    if len(settings) > 1:
        raise InputError(
            f"{text!r} joins strategies that cannot be joined; only {', '.join(_FILTERS)} can be."
        )
    return _alone(name, settings[name])


def _sampling(settings: dict[str, str | None]) -> Sampling:
    names, steps = [], []
    for name, (apply, parameter) in _FILTERS.items():
        if name in settings:
            value = parameter.parse(name, settings[name])
            number = int(value) if value.is_integer() else value
            names.append(f"{name}:{number:g}")
            steps.append((apply, number))
    return Sampling("+".join(names), tuple(steps))


def _alone(name: str, value: str | None) -> Strategy:
    if name == "beam":
        return BeamSearch(int(_WIDTH.parse(name, value)))
    if value is not None:
        raise InputError(f"The strategy {name} takes no number; write {name} alone.")
    return Greedy() if name == "greedy" else SpanSearch()
