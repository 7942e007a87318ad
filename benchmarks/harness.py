"""Run jobs in fresh processes, one at a time. Sides take turns, so a slow minute slows all.

In the first round each side searches its settings one by one, keeping the fastest value of each. In
later rounds it runs with its fastest settings.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A call of a function of this package, such as "ours.trees", in its own process."""

    name: str
    function: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """One side of a comparison, with the settings to search.

    Attributes:
        function: the function of its jobs.
        label: format string for the names of its jobs, filled with the settings.
        options: options of all its jobs.
        settings: values to try for further options; the search starts with the first of each.
    """

    function: str
    label: str
    options: Mapping[str, Any]
    settings: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def job(self, chosen: Mapping[str, Any]) -> Job:
        """Return the job with the chosen value of each setting."""
        return Job(self.label.format(**chosen), self.function, {**self.options, **chosen})

    @property
    def searched(self) -> int:
        """The number of jobs in a search."""
        return 1 + sum(len(values) - 1 for values in self.settings.values())


@dataclass
class Contender:
    """A job and the outcomes of its runs."""

    job: Job
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """The first error of its runs, or None."""
        return next((o["error"] for o in self.outcomes if "error" in o), None)

    @property
    def seconds(self) -> list[float]:
        """The times of all measurements."""
        return [seconds for o in self.outcomes for seconds in o.get("seconds", [])]

    @property
    def median_seconds(self) -> float:
        """The median time; NaN if a run failed."""
        return math.nan if self.error or not self.seconds else median(self.seconds)

    @property
    def questions(self) -> int:
        """The number of questions trained on or answered in each measurement."""
        return int(self.outcomes[0].get("questions", 1))

    @property
    def speed(self) -> float:
        """Questions per second; 0 if a run failed."""
        return 0.0 if math.isnan(self.median_seconds) else self.questions / self.median_seconds

    def median(self, key: str) -> float:
        """Return the median of a number in the outcomes; NaN if a run failed."""
        return math.nan if self.error else median(float(o[key]) for o in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Return the options and outcomes, without the texts of answers."""
        return {
            "name": self.job.name,
            "options": dict(self.job.options),
            "outcomes": [
                {key: value for key, value in outcome.items() if key != "answers"}
                for outcome in self.outcomes
            ],
        }


Groups = dict[str, list[Contender]]


@dataclass(frozen=True)
class Suite:
    """A comparison.

    Attributes:
        name: name of the suite and its results file.
        files: the passages that the jobs read, see `text.write`.
        sides: the sides by name.
        rounds: number of rounds.
        conclude: computes the conclusion from the outcomes.
    """

    name: str
    files: Mapping[str, tuple[str, Mapping[str, Any]]]
    sides: Mapping[str, Side]
    rounds: int
    conclude: Callable[[Groups], "Conclusion"]

    @property
    def runs(self) -> int:
        """The number of processes it runs."""
        searched = sum(side.searched for side in self.sides.values())
        return searched + (self.rounds - 1) * len(self.sides)


@dataclass(frozen=True)
class Target:
    """A target and the figure reached."""

    name: str
    wanted: str
    reached: str
    met: bool


def at_least(name: str, bound: float, reached: float, unit: str = "") -> Target:
    """Return a target that is met from `bound` up; NaN does not meet it."""
    return Target(name, f"at least {bound:g}{unit}", f"{reached:.3g}{unit}", reached >= bound)


def at_most(name: str, bound: float, reached: float, unit: str = "") -> Target:
    """Return a target that is met up to `bound`; NaN does not meet it."""
    return Target(name, f"at most {bound:g}{unit}", f"{reached:.3g}{unit}", reached <= bound)


@dataclass(frozen=True)
class Conclusion:
    """The result of a suite: ratios by name, and targets."""

    ratios: dict[str, float]
    targets: Sequence[Target] = ()


class Progress:
    """Write a line before each job: its number, the time taken, and the estimated time left."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.start = time.perf_counter()

    def tell(self, name: str) -> None:
        """Announce the next job."""
        gone = time.perf_counter() - self.start
        left = f", {_clock(gone / self.done * (self.total - self.done))} to go" if self.done else ""
        sys.stderr.write(f"[{self.done + 1}/{self.total}] {_clock(gone)}{left}: {name}\n")
        self.done += 1


def prepare(jobs: Sequence[Job], progress: Progress) -> None:
    """Run jobs that others need; exit if one fails."""
    for job in jobs:
        progress.tell(job.name)
        outcome = run(job)
        if "error" in outcome:
            raise SystemExit(f"{job.name} failed: {outcome['error']}")


def compete(suite: Suite, progress: Progress) -> Groups:
    """Run a suite and return the contenders of each side with their outcomes."""

    def measure(name: str, contender: Contender) -> None:
        progress.tell(f"{suite.name}, {name}: {contender.job.name}")
        contender.outcomes.append(run(contender.job))

    groups = {name: _search(side, partial(measure, name)) for name, side in suite.sides.items()}
    for _ in range(suite.rounds - 1):
        for name, group in groups.items():
            measure(name, best(group))
    return groups


def _search(side: Side, measure: Callable[[Contender], None]) -> list[Contender]:
    """Search setting by setting, keeping the fastest values of the other settings."""
    tried = [Contender(side.job({name: values[0] for name, values in side.settings.items()}))]
    measure(tried[0])
    for name, values in side.settings.items():
        fastest = {other: best(tried).job.options[other] for other in side.settings}
        for value in values[1:]:
            tried.append(Contender(side.job({**fastest, name: value})))
            measure(tried[-1])
    return tried


def best(group: Sequence[Contender]) -> Contender:
    """Return the fastest contender of those with the most runs."""
    return max(group, key=lambda contender: (len(contender.outcomes), contender.speed))


def run(job: Job) -> Outcome:
    """Return the result of the job's function, or {"error": last line of its standard error}."""
    command = [sys.executable, "-m", "benchmarks.worker", job.function, json.dumps(job.options)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": _one_gpu()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit status {done.returncode}"}
    outcome: Outcome = json.loads(done.stdout)
    return outcome


def _one_gpu() -> str:
    """Return the first visible GPU, because Trainer would use all and loraqa one."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
