"""The trials of a sweep in an SQLite file, and Optuna, which chooses their values.

The values of a trial depend on the seed, the trial's number and the trials before it, not on how
often the sweep was interrupted. A trial that was under way when the process died is still marked as
running, and is the next one.
"""

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from loraqa.begun import check_begun_with
from loraqa.errors import InputError, LoraqaError, in_a_line
from loraqa.sweep.settings import Interval, Range, SweepSettings
from loraqa.sweep.tried import State, Tried
from loraqa.train.settings import is_integer

# How Optuna's states are called here; a pruned trial was stopped by successive halving.
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "halved",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}

_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # A grid's values are chosen beforehand.
    "grid": lambda seed: RandomSampler(seed),
    "random": lambda seed: RandomSampler(seed),
    "tpe": lambda seed: TPESampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
}

# Under these names a trial keeps what Optuna has no place for.
_EXACT_MATCH, _SECONDS, _PROBLEM, _SAME_AS = "exact_match", "seconds", "problem", "same_as"
_IS_BEHIND = "is_behind"
# And the study what it began with.
_BEGAN = "began"


class Trial:
    """A trial under way.

    Attributes:
        number: its number, from 1 on.
        values: its values by dotted key of a setting.
    """

    def __init__(self, trial: optuna.Trial, values: Mapping[str, Any], reported: set[int]) -> None:
        self._trial = trial
        self._reported = reported
        self.number = trial.number + 1
        self.values = values

    @property
    def is_behind(self) -> bool:
        """Whether successive halving ends the trial."""
        return bool(self._trial.user_attrs.get(_IS_BEHIND))

    def judge(self, step: int, f1: float) -> bool:
        """Record F1 after a step; return whether the trial is now behind the others."""
        # A training that goes on from a checkpoint repeats what came after it.
        if step not in self._reported:
            self._reported.add(step)
            self._trial.report(f1, step)
            if self._trial.should_prune():
                self._trial.set_user_attr(_IS_BEHIND, True)
        return self.is_behind


class Study:
    """The trials of a sweep.

    Args:
        file: the SQLite file, made if it is missing.
        sweep: what is tried.
        seed: random seed of the samplers.
        rung: optimizer steps before successive halving first judges a trial.

    Raises:
        InputError: the file is no study.
    """

    def __init__(self, file: Path, sweep: SweepSettings, seed: int, rung: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sweep, self._seed = sweep, seed
        # The values of the trials that `next` has returned and that are not finished, by number.
        self._under_way: dict[int, Mapping[str, Any]] = {}
        try:
            self._study = _open(file, sweep, rung)
        except (SQLAlchemyError, RuntimeError) as error:
            raise InputError(
                f"{file} cannot be read as the trials of a sweep ({in_a_line(error)}); name "
                "another folder with --out."
            ) from None

    def check_begun_with(self, facts: Mapping[str, Any]) -> None:
        """Remember what a new sweep begins with; check that a begun one goes on with the same.

        Raises:
            InputError: it began with something else.
        """
        began = self._study.user_attrs.get(_BEGAN)
        if began is None:
            self._study.set_user_attr(_BEGAN, dict(facts))
            return
        check_begun_with("The sweep", began, facts, "start a new sweep in another folder")

    def next(self) -> Trial | None:
        """Return the trial that was interrupted, or else a new one; None if there is none now.

        Samplers may draw values that they drew before. Such a trial gets the earlier one's outcome;
        if that one is still under way, none begins until it is finished.
        """
        while (trial := self._begin()) is not None:
            earlier = self._earlier_with(trial)
            if earlier is not None:
                self._repeat(trial, earlier)
            elif trial.values in self._under_way.values():
                return None
            else:
                self._under_way[trial.number] = trial.values
                return trial
        return None

    def _begin(self) -> Trial | None:
        trials = self._study.get_trials(deepcopy=False)
        interrupted = [
            trial
            for trial in trials
            if trial.state == TrialState.RUNNING and trial.number + 1 not in self._under_way
        ]
        begun = [trial for trial in trials if trial.state != TrialState.WAITING]
        if not interrupted and len(begun) >= self._sweep.total:
            return None
        number = interrupted[0].number if interrupted else len(begun)
        self._study.sampler = _SAMPLERS[self._sweep.sampler](_seed_of(self._seed, number))
        if interrupted:
            trial = optuna.Trial(self._study, interrupted[0]._trial_id)
            reported = set(interrupted[0].intermediate_values)
        else:
            trial, reported = self._ask(number), set()
        values = {key: _suggest(trial, key, each) for key, each in self._sweep.ranges.items()}
        return Trial(trial, values, reported)

    def _earlier_with(self, trial: Trial) -> FrozenTrial | None:
        """Return the first finished trial with the same values, if there is one."""
        finished = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        for earlier in self._study.get_trials(deepcopy=False, states=finished):
            if self._tried(earlier).values == trial.values:
                return earlier
        return None

    def _repeat(self, trial: Trial, earlier: FrozenTrial) -> None:
        self._keep(trial, {**earlier.user_attrs, _SECONDS: None, _SAME_AS: earlier.number + 1})
        for step, f1 in earlier.intermediate_values.items():
            trial._trial.report(f1, step)
        score = earlier.value if earlier.state == TrialState.COMPLETE else None
        self._study.tell(trial._trial, score, state=earlier.state)

    def _ask(self, number: int) -> optuna.Trial:
        """Return a new trial; in a grid it is the one of this number."""
        if self._sweep.sampler == "grid":
            texts = [_texts(each) for each in self._sweep.ranges.values() if isinstance(each, list)]
            point = next(itertools.islice(itertools.product(*texts), number, None))
            values = dict(zip(self._sweep.ranges, point, strict=True))
            # A process may have died before it took it out of the queue.
            self._study.enqueue_trial(values, skip_if_exists=True)
        return self._study.ask()

    def finish(self, trial: Trial, f1: float, exact_match: float, seconds: float | None) -> None:
        """Record the scores of a trial that was trained to the end.

        `seconds` is the time that it took, None if that is not known.
        """
        self._keep(trial, {_EXACT_MATCH: exact_match, _SECONDS: seconds})
        self._study.tell(trial._trial, f1)

    def halve(self, trial: Trial, seconds: float | None) -> None:
        """Record that successive halving ended a trial."""
        self._keep(trial, {_SECONDS: seconds})
        self._study.tell(trial._trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, problem: str) -> None:
        """Record that a trial failed, and why."""
        self._keep(trial, {_PROBLEM: problem})
        self._study.tell(trial._trial, state=TrialState.FAIL)

    def _keep(self, trial: Trial, facts: Mapping[str, Any]) -> None:
        self._under_way.pop(trial.number, None)
        for name, value in facts.items():
            trial._trial.set_user_attr(name, value)

    def judged_any(self) -> bool:
        """Return whether a trial was judged before its end."""
        trials = self._study.get_trials(deepcopy=False)
        return any(len(trial.intermediate_values) > 1 for trial in trials)

    def trials(self) -> list[Tried]:
        """Return the trials that have begun, in order."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._tried(trial) for trial in trials if trial.state in _STATES]

    def _tried(self, trial: FrozenTrial) -> Tried:
        return Tried(
            number=trial.number + 1,
            state=_STATES[trial.state],
            values={
                key: _value(each, trial.params[key])
                for key, each in self._sweep.ranges.items()
                if key in trial.params
            },
            f1=trial.value,
            exact_match=trial.user_attrs.get(_EXACT_MATCH),
            seconds=trial.user_attrs.get(_SECONDS),
            problem=trial.user_attrs.get(_PROBLEM),
            same_as=trial.user_attrs.get(_SAME_AS),
        )


@contextmanager
def naming_storage(file: Path) -> Iterator[None]:
    """Turn errors of the storage, as on a full disk, into a `LoraqaError` that names the file."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        raise LoraqaError(
            f"{file} cannot be read or written ({in_a_line(Exception(str(cause)))}); see whether "
            "its disk is full, and give the same command again."
        ) from error


def _open(file: Path, sweep: SweepSettings, rung: int) -> optuna.Study:
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if sweep.halving is not None:
        pruner = optuna.pruners.SuccessiveHalvingPruner(rung, sweep.halving)
    # A path in a URL could hold `?`, `#` or `%`.
    storage = optuna.storages.RDBStorage(
        "sqlite://", {"creator": lambda: sqlite3.connect(file, check_same_thread=False)}
    )
    return optuna.create_study(
        storage=storage,
        study_name="sweep",
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )


def _seed_of(seed: int, number: int) -> int:
    """Return a seed for one trial, below 2**32."""
    (drawn,) = np.random.SeedSequence((seed, number)).generate_state(1)
    return int(drawn)


def _suggest(trial: optuna.Trial, key: str, tried: Range) -> Any:
    if isinstance(tried, Interval):
        if is_integer(key):
            return trial.suggest_int(key, int(tried.low), int(tried.high), log=tried.log)
        return trial.suggest_float(key, tried.low, tried.high, log=tried.log)
    return json.loads(trial.suggest_categorical(key, _texts(tried)))


def _texts(values: list[Any]) -> list[str]:
    """Return values as texts: Optuna keeps no lists, such as those of `lora.target_modules`."""
    return [json.dumps(value, ensure_ascii=False) for value in values]


def _value(tried: Range, parameter: Any) -> Any:
    return parameter if isinstance(tried, Interval) else json.loads(parameter)
