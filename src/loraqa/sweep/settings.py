"""What a sweep tries, from a YAML file. Importing this loads neither PyTorch nor Optuna.

sampler: tpe
trials: 20
halving: 3
ranges:
  optimisation.learning_rate: {from: 1e-4, to: 4e-3, log: true}
  lora.rank: [4, 8, 16, 32, 64]
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from loraqa.errors import InputError, shortened
from loraqa.train.settings import RunSettings, read_yaml

# A sampler that draws without an end stops after so many trials, unless the user says otherwise.
_USUAL_TRIALS = 20

# What a trial may differ in: how it learns, not what it is scored on.
_TRIED = ("lora.", "optimisation.", "prompt.", "data.negatives")

# What decides how much a trial has learned after a number of steps, by which halving compares.
_PACE = (
    "optimisation.epochs",
    "optimisation.max_steps",
    "optimisation.questions_per_step",
    "data.negatives",
)


class _Group(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Interval(_Group):
    """All numbers between two; of an integer setting the integers."""

    low: int | float = Field(alias="from")
    """The smallest number."""
    high: int | float = Field(alias="to")
    """The largest number."""
    log: bool = False
    """Whether to draw evenly on a logarithmic scale."""


Values: TypeAlias = Annotated[list[Any], Field(min_length=1)]


def _kind(value: Any) -> str | None:
    if isinstance(value, list):
        return "values"
    return "interval" if isinstance(value, dict | Interval) else None


Range: TypeAlias = Annotated[
    Annotated[Values, Tag("values")] | Annotated[Interval, Tag("interval")], Discriminator(_kind)
]


class SweepSettings(_Group):
    """What a sweep tries, and how."""

    sampler: Literal["random", "grid", "tpe", "gp"] = "tpe"
    """How values are chosen: at random, all combinations, by Optuna's TPE or Gaussian process."""
    trials: int | None = Field(default=None, ge=1)
    """Trainings at most; null is 20, or the whole grid."""
    halving: int | None = Field(default=None, ge=2)
    """Of the trials that reach a rung one in so many goes on; null lets all of them end."""
    ranges: dict[str, Range] = Field(min_length=1)
    """What is tried of each setting: a list of values, or an interval."""

    @property
    def total(self) -> int:
        """The number of trials."""
        if self.sampler != "grid":
            return self.trials or _USUAL_TRIALS
        size = math.prod(len(each) for each in self.ranges.values() if isinstance(each, list))
        return min(self.trials or size, size)


def read_sweep(file: Path, base: RunSettings) -> SweepSettings:
    """Read and check what a sweep tries.

    Args:
        file: a YAML file.
        base: the settings that all trials share.

    Raises:
        InputError: the file is missing or not YAML; a key is unknown, missing or has a wrong
            value; a setting cannot be tried, or not with these values.
    """
    try:
        sweep = SweepSettings.model_validate(read_yaml(file))
    except ValidationError as error:
        raise InputError(f"{file}: {_explain(error.errors()[0])}") from None
    for problem in _problems(sweep, base):
        raise InputError(f"{file}: {problem}")
    return sweep


def _explain(error: ErrorDetails) -> str:
    # The tags of the two kinds of ranges are no keys.
    parts = [str(part) for part in error["loc"] if part not in ("values", "interval")]
    key = shortened(".".join(parts), 60)
    if error["type"] == "extra_forbidden":
        inside = len(parts) > 1
        holder = "an interval has from, to and log" if inside else f"a sweep has {_names()}"
        return f"there is no key {key}; {holder}."
    if error["type"] == "missing":
        return f"the key {key} is missing; write it as in `{_example(parts)}`."
    given = shortened(repr(error["input"]), 60)
    if error["type"].startswith("union_tag"):
        return f"{key} is {given} but must be a list of values, or {{from: …, to: …}}."
    allowed = re.sub(r"^(Input|List|Dictionary) should ", "must ", error["msg"])
    return f"{key} is {given} but {shortened(allowed, 400)}."


def _names() -> str:
    return ", ".join(SweepSettings.model_fields)


def _example(parts: list[str]) -> str:
    if len(parts) == 1:
        return "ranges: {lora.rank: [8, 16]}"
    return f"{parts[1]}: {{from: 1e-4, to: 1e-2, log: true}}"


def _problems(sweep: SweepSettings, base: RunSettings) -> Iterator[str]:
    """Yield what pydantic cannot know: whether settings have such values, and can be tried."""
    for key, tried in sweep.ranges.items():
        values = tried if isinstance(tried, list) else [tried.low, tried.high]
        for value in values:
            try:
                base.with_values({key: value})
            except InputError as error:
                yield str(error)
        if not key.startswith(_TRIED):
            yield (
                f"ranges.{key} would change more than how a trial learns; what can be tried is "
                f"{', '.join(name.removesuffix('.') for name in _TRIED)}."
            )
        if sweep.halving is not None and key in _PACE:
            yield (
                f"ranges.{key} changes how much a trial has seen after a number of steps, by which "
                "halving compares; leave one of the two out."
            )
        if isinstance(tried, list):
            repeated = [value for number, value in enumerate(tried) if value in tried[:number]]
            if repeated:
                yield f"ranges.{key} names {repeated[0]!r} twice; name each value once."
        elif sweep.sampler == "grid":
            yield f"ranges.{key} is an interval, but a grid needs a list, as in [1e-3, 2e-3]."
        elif tried.low >= tried.high:
            yield f"ranges.{key} goes from {tried.low:g} to {tried.high:g}, which must be larger."
        elif tried.log and tried.low <= 0:
            yield f"ranges.{key} has `log: true`, so `from` must be larger than 0."
