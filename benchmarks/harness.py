"""Jobs in fresh processes, one at a time: sides take turns, so a slow minute slows them all.

In the first round each side tries its settings, one after another, and keeps the fastest value of
each; in the later rounds it runs as it was fastest.
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
    """A call of a function of this package, such as "ours.trees", in a process of its own."""

    name: str
    function: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """One side of a comparison, with the settings that it may try.

    Attributes:
        function: as of a `Job`.
        label: the name of its jobs, a format of its settings.
        options: that all its jobs get.
        settings: the values to try of further options; it begins with the first of each.
    """

    function: str
    label: str
    options: Mapping[str, Any]
    settings: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def job(self, chosen: Mapping[str, Any]) -> Job:
        """With one value for each of the settings."""
        return Job(self.label.format(**chosen), self.function, {**self.options, **chosen})

    @property
    def searched(self) -> int:
        """How many jobs a search takes."""
        return 1 + sum(len(values) - 1 for values in self.settings.values())


@dataclass
class Contender:
    """A job and what came out of it, once for each time that it ran."""

    job: Job
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """Why it failed, if it did."""
        return next((o["error"] for o in self.outcomes if "error" in o), None)

    @property
    def seconds(self) -> list[float]:
        """Of every time that it was measured."""
        return [seconds for o in self.outcomes for seconds in o.get("seconds", [])]

    @property
    def median_seconds(self) -> float:
        """Not a number where it failed, as whatever is computed from it."""
        return math.nan if self.error or not self.seconds else median(self.seconds)

    @property
    def questions(self) -> int:
        """How many questions are learned from, or answered, each time."""
        return int(self.outcomes[0].get("questions", 1))

    @property
    def speed(self) -> float:
        """Questions a second; 0 where it failed."""
        return 0.0 if math.isnan(self.median_seconds) else self.questions / self.median_seconds

    def median(self, key: str) -> float:
        """Of a number in its outcomes; not a number where it failed."""
        return math.nan if self.error else median(float(o[key]) for o in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Settings, and everything measured but the texts of answers."""
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
        name: that of its file of results.
        files: passages that the jobs read, see `text.write`.
        sides: who competes, by name.
        rounds: how often the sides take turns.
        conclude: makes the conclusion out of what came out.
    """

    name: str
    files: Mapping[str, tuple[str, Mapping[str, Any]]]
    sides: Mapping[str, Side]
    rounds: int
    conclude: Callable[[Groups], "Conclusion"]

    @property
    def runs(self) -> int:
        """How many processes it takes."""
        searched = sum(side.searched for side in self.sides.values())
        return searched + (self.rounds - 1) * len(self.sides)


@dataclass(frozen=True)
class Target:
    """What is to be reached, and what was."""

    name: str
    wanted: str
    reached: str
    met: bool


def at_least(name: str, bound: float, reached: float, unit: str = "") -> Target:
    """A target from below; what is not a number fails it."""
    return Target(name, f"at least {bound:g}{unit}", f"{reached:.3g}{unit}", reached >= bound)


def at_most(name: str, bound: float, reached: float, unit: str = "") -> Target:
    """A target from above; what is not a number fails it."""
    return Target(name, f"at most {bound:g}{unit}", f"{reached:.3g}{unit}", reached <= bound)


@dataclass(frozen=True)
class Conclusion:
    """What a suite found: ratios by name, and targets."""

    ratios: dict[str, float]
    targets: Sequence[Target] = ()


class Progress:
    """A line before each job: how many are done, how long that took, how long the rest may take."""

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
    """Run what others need; where it fails, all ends."""
    for job in jobs:
        progress.tell(job.name)
        outcome = run(job)
        if "error" in outcome:
            raise SystemExit(f"{job.name} failed: {outcome['error']}")


def compete(suite: Suite, progress: Progress) -> Groups:
    """Run a suite: what each side tried, with what came out."""

    def measure(name: str, contender: Contender) -> None:
        progress.tell(f"{suite.name}, {name}: {contender.job.name}")
        contender.outcomes.append(run(contender.job))

    groups = {name: _search(side, partial(measure, name)) for name, side in suite.sides.items()}
    for _ in range(suite.rounds - 1):
        for name, group in groups.items():
            measure(name, best(group))
    return groups


def _search(side: Side, measure: Callable[[Contender], None]) -> list[Contender]:
    """Every value of a setting in turn, beside the fastest of those before it."""
    tried = [Contender(side.job({name: values[0] for name, values in side.settings.items()}))]
    measure(tried[0])
    for name, values in side.settings.items():
        fastest = {other: best(tried).job.options[other] for other in side.settings}
        for value in values[1:]:
            tried.append(Contender(side.job({**fastest, name: value})))
            measure(tried[-1])
    return tried


def best(group: Sequence[Contender]) -> Contender:
    """The fastest; after the first round, the one that went on."""
    return max(group, key=lambda contender: (len(contender.outcomes), contender.speed))


def run(job: Job) -> Outcome:
    """What the job's function returned, or {"error": the last line of its complaint}."""
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
    """The first of those that may be seen: Trainer would take them all, and we one."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
