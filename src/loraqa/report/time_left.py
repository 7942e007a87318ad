"""How long a training still takes: its steps, its scorings, and the answers after the last."""

import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loraqa.train.run import Record

SCORING_ONCE_TRAINED = 0.3
"""Share of the first scoring's time that a later one takes, because a trained model is surer."""

# So many of the last steps tell how fast a training is now.
_RECENT = 50


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds, such as 5:00; from an hour on with hours, 1:05:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@dataclass(frozen=True)
class Work:
    """What a training has to do.

    Attributes:
        steps: optimizer steps.
        tokens_per_step: tokens that a step computes, in the mean.
        scorings: the steps after which the model is scored, in order; 0 is before the first step.
        answered_after: questions that are answered after the last step, to calibrate by and for
            the report.
    """

    steps: int
    tokens_per_step: float
    scorings: Sequence[int] = ()
    answered_after: int = 0


class Left(NamedTuple):
    """The seconds that are left; `at_least` if something comes whose time is not known yet."""

    seconds: float
    at_least: bool = False


class TimeLeft:
    """Estimates the time that is left of a training, from what this process has done of it."""

    def __init__(self, work: Work, done: int = 0) -> None:
        self._work = work
        self._first_step = done + 1
        self._recent: deque[Record] = deque(maxlen=_RECENT)
        self._scoring: Record | None = None
        self._known: Left | None = None
        self._known_since = 0.0

    def add(self, record: Record) -> None:
        """Learn from a record of the metrics that was just made."""
        step, scorings = record["step"], self._work.scorings
        if record["kind"] == "evaluation":
            self._scoring = record
            to_come = len(scorings) - bisect_right(scorings, step)
        else:
            # The first step compiles kernels, and says little about the others.
            if step != self._first_step:
                self._recent.append(record)
            to_come = len(scorings) - bisect_left(scorings, step)
        self._known = self._after(self._work.steps - step, to_come)
        self._known_since = time.monotonic()

    def now(self) -> Left | None:
        """Return the time that is left now; None before anything is known."""
        if self._known is None:
            return None
        seconds = self._known.seconds - (time.monotonic() - self._known_since)
        return self._known._replace(seconds=max(seconds, 0))

    def _after(self, steps: int, scorings: int) -> Left | None:
        """Return the time for the steps and scorings to come, and for what comes after them."""
        if steps and not self._recent:
            return None
        training = steps * self._seconds_per_step() if steps else 0
        if self._scoring is None:
            return Left(training, at_least=scorings > 0 or self._work.answered_after > 0)
        share = SCORING_ONCE_TRAINED if self._scoring["step"] == 0 else 1
        scoring = share * self._scoring["seconds"]
        scorings_after = self._work.answered_after / self._scoring["total"]
        return Left(training + (scorings + scorings_after) * scoring)

    def _seconds_per_step(self) -> float:
        """Return the time of a step of mean size. Steps differ in size, so tokens are counted."""
        seconds: float = sum(record["seconds"] for record in self._recent)
        tokens: float = sum(
            record["seconds"] * record["tokens_per_second"] for record in self._recent
        )
        return self._work.tokens_per_step * seconds / tokens
