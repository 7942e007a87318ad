"""What became of a trial of a sweep. Importing this loads neither PyTorch nor Optuna."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["done", "halved", "failed", "running"]


@dataclass(frozen=True)
class Tried:
    """A trial.

    Attributes:
        number: its number, from 1 on.
        state: `done`, `halved` (successive halving ended it), `failed` or `running`.
        values: its values by dotted key of a setting.
        f1: of its adapter; of the last evaluation if it was halved; None if there is none.
        exact_match: of its adapter, if it has one.
        seconds: how long it took; None if it was interrupted, failed or repeated.
        problem: why it failed.
        same_as: the number of the earlier trial with the same values, whose outcome it has.
    """

    number: int
    state: State
    values: Mapping[str, Any]
    f1: float | None = None
    exact_match: float | None = None
    seconds: float | None = None
    problem: str | None = None
    same_as: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def best_of(trials: Iterable[Tried]) -> Tried | None:
    """Return the trial with the highest F1 of those that were trained to the end, if any.

    Of equal ones the first is taken.
    """
    done = [trial for trial in trials if trial.state == "done"]
    return max(done, key=lambda trial: trial.f1 or 0.0, default=None)
