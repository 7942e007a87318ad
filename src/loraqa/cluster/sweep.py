"""Train the trials of a sweep on a cluster, several at once, each a task of Ray.

The storage stays with this process: it chooses trials, judges them, and records what became of
them. A trial asks it, by an actor that passes questions on, whether it is behind. A trial whose
machine is lost goes on from its checkpoint on another one.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from loraqa.cluster.connect import LOSSES, workers_and_needs
from loraqa.cluster.judges import Judges
from loraqa.errors import LoraqaError, counted, explain, explained, in_a_line
from loraqa.sweep.run import Outcome, Work, train_trial
from loraqa.sweep.study import Trial
from loraqa.train.settings import RunSettings

logger = logging.getLogger("loraqa")

# What Ray raises when a trial's process or machine is gone.
_LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)

# Seconds between two looks for evaluations to judge.
_INTERVAL = 0.5

# How long a trial that is told to stop may take to write its checkpoint, in seconds.
_PATIENCE = 120


def on_cluster(trials: int | None = None) -> Callable[[Work], None]:
    """Return a function that trains trials on the cluster to which this process is connected.

    Data, base model and folder of the sweep have the same paths on all machines.

    Args:
        trials: how many are trained at once; by default one for each GPU, or if there is none, one
            for each machine.
    """
    return partial(_train_trials, trials)


def _train_trials(at_once: int | None, work: Work) -> None:
    work.at_once, needs = workers_and_needs(at_once)
    # Ray would try again in silence; here a message says so.
    train = ray.remote(_train).options(max_retries=0, **needs)
    judges = ray.remote(Judges).options(num_cpus=0, scheduling_strategy=_here()).remote()
    under_way: dict[Any, Trial] = {}
    losses: Counter[int] = Counter()

    def start(trial: Trial) -> None:
        arguments = work.settings_of(trial), work.folder_of(trial), work.command
        under_way[train.remote(Path.cwd(), judges, trial.number, *arguments)] = trial

    try:
        while True:
            while len(under_way) < work.at_once and (trial := work.next()) is not None:
                start(trial)
            if not under_way:
                return
            finished, _ = ray.wait(list(under_way), timeout=_INTERVAL)
            _judge(judges, list(under_way.values()))
            for each in finished:
                trial = under_way.pop(each)
                outcome = _outcome(each, trial, losses)
                if outcome is None:
                    start(trial)
                else:
                    work.record(trial, outcome)
    finally:
        _stop(list(under_way))


def _here() -> NodeAffinitySchedulingStrategy:
    """Return where to place an actor that is not to be lost with a machine other than this one."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _judge(judges: Any, trials: list[Trial]) -> None:
    """Judge the trials that wait for it."""
    by_number = {trial.number: trial for trial in trials}
    for number, step, f1 in ray.get(judges.asked.remote()):
        if number in by_number:
            trial = by_number[number]
            judges.say.remote(number, trial.judge(step, f1) if step else trial.is_behind)


def _outcome(finished: Any, trial: Trial, losses: Counter[int]) -> Outcome | None:
    """Return what became of a trial; None if its process was lost, and it goes on in another one.

    Raises:
        LoraqaError: what ends the sweep.
    """
    try:
        given: Outcome | _Problem = ray.get(finished)
    except _LOST as error:
        losses[trial.number] += 1
        return _lost(trial, losses[trial.number], in_a_line(error))
    if isinstance(given, Outcome):
        return given
    raise explained(given.message, given.status)


def _lost(trial: Trial, times: int, reason: str) -> Outcome | None:
    """Return that a trial has failed if its process was lost too often; else None."""
    if times > LOSSES:
        lost = f"its process was lost {counted(times, 'time')} ({reason})"
        return Outcome(problem=f"{lost}; see whether its machine has enough memory")
    logger.warning(f"Trial {trial.number} lost its process ({reason}), and goes on in a new one.")
    return None


def _stop(started: list[Any]) -> None:
    """Let trials that are under way write their checkpoints and end."""
    for each in started:
        ray.cancel(each)
    if started:
        ray.wait(started, num_returns=len(started), timeout=_PATIENCE)


@dataclass(frozen=True)
class _Problem:
    """Why a trial ended without an outcome, as `explain` says it."""

    message: str
    status: int


def _train(
    place: Path,
    judges: Any,
    number: int,
    settings: RunSettings,
    folder: Path,
    command: str,
) -> Outcome | _Problem:
    """Train a trial on the machine to which Ray has sent it."""
    # Paths may be relative.
    os.chdir(place)

    def judge(step: int, f1: float) -> bool:
        behind: bool = ray.get(judges.ask.remote(number, step, f1))
        return behind

    try:
        # Ray may have sent it before to a machine that was lost.
        is_behind = judge(0, 0.0)
        return train_trial(settings, folder, command, is_behind, judge)
    except (LoraqaError, OSError) as error:
        return _Problem(*explain(error))
