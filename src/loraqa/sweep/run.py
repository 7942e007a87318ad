"""The recipe of a sweep: one training after another, each in its own folder, and the best of them.

FOLDER/
    study.db       the trials, in SQLite
    trial-0001/    the run of the first trial, with its adapter; …
    trials.csv     a line for each trial
    best.yaml      the settings of the best trial, for `loraqa train`
    report.html    table and plots
    .lock          locked while a process works here
"""

import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from loraqa.errors import InputError, LoraqaError, explain
from loraqa.files import check_folder_writable, contents, one_writer, write_text
from loraqa.finetuning import FinetuneResult, finetune
from loraqa.report.time_left import clock
from loraqa.squad import read_passages
from loraqa.sweep.report import trials_csv, write_report
from loraqa.sweep.settings import SweepSettings
from loraqa.sweep.study import Study, Trial, naming_storage
from loraqa.sweep.tried import Tried, best_of
from loraqa.train.data import check_sources
from loraqa.train.run import Record, RunDirectory
from loraqa.train.settings import RunSettings, dotted
from loraqa.train.stopping import StoppedError

logger = logging.getLogger("loraqa")

STUDY, TRIALS, BEST = "study.db", "trials.csv", "best.yaml"

# What changes no trial's result, except by rounding, may change when a sweep goes on. The data are
# known by their fingerprints.
_FREE = ("speed.", "checkpoint.", "optimisation.tokens_per_batch", "data.train", "data.dev")


class _HalvedError(Exception):
    """Successive halving ends the trial."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. One without scores and problem was ended by successive halving.

    Attributes:
        f1, exact_match: of its adapter, if it was trained to the end.
        seconds: how long it took; None if it was interrupted or failed.
        problem: why it failed.
    """

    f1: float | None = None
    exact_match: float | None = None
    seconds: float | None = None
    problem: str | None = None


Judge = Callable[[int, float], bool]
"""Takes a step and F1 after it, and returns whether the trial is behind the others."""


class Work:
    """The trials of a sweep: what each has to do, and what became of it.

    Attributes:
        base: the settings that all trials share.
        folder: that of the sweep.
        command: the command that goes on with it.
        at_once: how many trials are under way at the same time.
    """

    def __init__(
        self, what: SweepSettings, base: RunSettings, folder: Path, command: str, study: Study
    ) -> None:
        self.base, self.folder, self.command = base, folder, command
        self.at_once = 1
        self._total = what.total
        self._study = study

    def next(self) -> Trial | None:
        """Return a trial to train; None if there is none before another one is finished."""
        trial = self._study.next()
        if trial is not None:
            logger.info(f"Trial {trial.number} of {self._total}: {_told(trial.values)}.")
        return trial

    def settings_of(self, trial: Trial) -> RunSettings:
        """Return the settings of a trial's training."""
        return self.base.with_values(trial.values)

    def folder_of(self, trial: Trial) -> Path:
        """Return the folder of a trial's run."""
        return _folder_of(self.folder, trial.number)

    def record(self, trial: Trial, outcome: Outcome) -> None:
        """Keep what became of a trial."""
        if outcome.f1 is not None and outcome.exact_match is not None:
            self._study.finish(trial, outcome.f1, outcome.exact_match, outcome.seconds)
        elif outcome.problem is not None:
            self._study.fail(trial, outcome.problem)
        else:
            self._study.halve(trial, outcome.seconds)
        _remove_checkpoints(self.folder, trial.number, "finished")
        trials = self._study.trials()
        _report_trial(trials, trial.number, self._total, self.at_once)
        _keep_results(trials, self.base, self.folder)

    def stopped(self, trial: Trial, stopped: StoppedError) -> StoppedError:
        """Return an error that says how to go on."""
        return StoppedError(
            f"Stopped by {stopped.received.name} in trial {trial.number} of {self._total}; go on "
            f"with `{self.command}`.",
            stopped.received,
        )


def one_after_another(work: Work) -> None:
    """Train the trials in this process."""
    while (trial := work.next()) is not None:
        try:
            outcome = train_trial(
                work.settings_of(trial),
                work.folder_of(trial),
                work.command,
                trial.is_behind,
                trial.judge,
            )
        except StoppedError as stopped:
            raise work.stopped(trial, stopped) from None
        work.record(trial, outcome)
        # The model is large, and the next one is loaded at once.
        gc.collect()


def sweep(
    what: SweepSettings,
    base: RunSettings,
    folder: Path,
    command: str,
    train_trials: Callable[[Work], None] = one_after_another,
) -> list[Tried]:
    """Train with many settings, and keep the best ones; go on if the sweep was begun before.

    Args:
        what: what is tried.
        base: the settings that all trials share; its seed is that of the samplers, too.
        folder: new, or that of the sweep.
        command: the command that goes on with the sweep.
        train_trials: trains the trials.

    Returns:
        The trials, in order.

    Raises:
        InputError: there are no dev data, data or folder cannot be used, or the folder's sweep
            began with something else.
        StoppedError: Ctrl-C or SIGTERM; the trial's checkpoint was written.
        LoraqaError: no trial was trained to the end.
    """
    facts = _facts(what, base)
    _check_folder(folder)
    with one_writer(folder), naming_storage(folder / STUDY), _telling_what_is_kept(command):
        study = Study(folder / STUDY, what, base.seed, base.evaluation.every)
        study.check_begun_with(facts)
        for tried in study.trials():
            _remove_checkpoints(folder, tried.number, tried.state)
        train_trials(Work(what, base, folder, command, study))
        trials = study.trials()
        if what.halving is not None and not study.judged_any():
            logger.warning(
                "No trial was judged before its end, so halving did nothing; lower "
                "evaluation.every to about a tenth of the steps."
            )
        _keep_results(trials, base, folder)
        write_report(trials, what, folder)
    if best_of(trials) is None:
        raise LoraqaError(
            f"No trial was trained to the end; {folder / TRIALS} says why each one failed."
        )
    return trials


def _facts(what: SweepSettings, base: RunSettings) -> dict[str, Any]:
    """Return what may not change when the sweep goes on. The data are read and checked.

    Raises:
        InputError: model or data do not exist, or cannot be used.
    """
    options = base.data
    if options.dev is None:
        raise InputError("A sweep needs data to score its trials on; give them with --dev.")
    if base.evaluation.metric != "f1":
        raise InputError("A sweep compares its trials by F1; leave evaluation.metric out.")
    check_sources(base)
    train = read_passages(options.train, on_bad=options.on_bad, split="train")
    dev = read_passages(options.dev, on_bad=options.on_bad)
    settings = {key: value for key, value in dotted(base).items() if not key.startswith(_FREE)}
    swept = what.model_dump(mode="json", by_alias=True)
    how = {key: swept[key] for key in ("sampler", "halving")}
    # In which a grid is gone through.
    how["order of ranges"] = list(swept["ranges"])
    data = {"training data": train.fingerprint, "dev data": dev.fingerprint}
    return {**settings, **swept["ranges"], **how, **data}


def _check_folder(folder: Path) -> None:
    """Raise `InputError` unless a sweep can begin in the folder, or has begun there."""
    if folder.is_file():
        raise InputError(f"{folder} is a file; name a folder for the sweep.")
    if folder.exists() and contents(folder) and not (folder / STUDY).exists():
        raise InputError(f"{folder} exists already, and holds no sweep; name another folder.")
    check_folder_writable(folder)


@contextmanager
def _telling_what_is_kept(command: str) -> Iterator[None]:
    """If the work is ended at once, or fails, log how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, OSError):
        logger.info(f"Finished trials and checkpoints are kept; go on with `{command}`.")
        raise


def train_trial(
    settings: RunSettings, folder: Path, command: str, is_behind: bool, judge: Judge
) -> Outcome:
    """Train a trial, or go on with it, and return what became of it.

    Args:
        settings: those of the training.
        folder: that of the trial's run.
        command: the command that made the run.
        is_behind: whether the trial was behind at its last evaluation, before an interruption.
        judge: called after each evaluation.

    Raises:
        StoppedError: Ctrl-C or SIGTERM.
        InputError: a trial that could be trained when it began cannot go on.
    """
    run = RunDirectory(folder)
    resume = run.settings_file.exists()
    start = time.monotonic()

    def judge_record(record: Record) -> None:
        nonlocal is_behind
        if record["kind"] == "evaluation" and record["step"] > 0:
            is_behind = judge(record["step"], record["f1"])
        elif is_behind:
            # A trial that was behind at its last evaluation has come to its end, and is done.
            raise _HalvedError

    def seconds() -> float | None:
        return None if resume else time.monotonic() - start

    try:
        result = finetune(
            settings, run.path, resume=resume, command=command, on_record=judge_record
        )
        return Outcome(*_scores(result), seconds())
    except _HalvedError:
        return Outcome(seconds=seconds())
    except StoppedError:
        raise
    except LoraqaError as error:
        if resume and isinstance(error, InputError):
            # It could be trained when it began; so something else has changed since.
            raise
        return Outcome(problem=explain(error)[0])


def _scores(result: FinetuneResult) -> tuple[float, float]:
    """Return F1 and exact match of a trial's adapter."""
    if result.after is None:
        raise ValueError("a trial has dev data")
    return result.after.f1, result.after.exact_match


def _folder_of(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:04d}"


def _remove_checkpoints(folder: Path, number: int, state: str) -> None:
    """Remove the checkpoints of a trial that is finished; only resuming it would need them."""
    if state != "running":
        shutil.rmtree(RunDirectory(_folder_of(folder, number)).checkpoints, ignore_errors=True)


def _report_trial(trials: Sequence[Tried], number: int, total: int, at_once: int) -> None:
    """Log what became of a trial, the best one so far, and the time left."""
    trial = trials[number - 1]
    became = f"failed: {trial.problem}" if trial.state == "failed" else f"F1 {trial.f1:.1f}"
    if trial.state == "halved":
        became = f"{became}, ended by successive halving"
    best = best_of(trials)
    so_far = f" Best so far: F1 {best.f1:.1f}, trial {best.number}." if best else ""
    left = _left(trials, total, at_once)
    logger.info(f"Trial {number} of {total}: {became.rstrip('.')}.{so_far}{left}")


def _left(trials: Sequence[Tried], total: int, at_once: int) -> str:
    """Return the time left at the mean time of a trial, in words; empty if none is known."""
    known = [trial.seconds for trial in trials if trial.seconds is not None]
    left = total - len(trials)
    return f" {clock(left * fmean(known) / at_once)} left." if known and left else ""


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def _keep_results(trials: Sequence[Tried], base: RunSettings, folder: Path) -> None:
    """Write the trials as a table, and the settings of the best one."""
    write_text(folder / TRIALS, trials_csv(trials))
    if best := best_of(trials):
        write_text(folder / BEST, base.with_values(best.values).to_yaml())
