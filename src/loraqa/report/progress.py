"""Show progress on standard error: a bar on a terminal, otherwise a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import rich.progress
from rich.console import Console

from loraqa.answer.journal import Journal, Stopwatch
from loraqa.answer.progress import Progress
from loraqa.errors import counted
from loraqa.report.time_left import Left, TimeLeft, Work, clock
from loraqa.train.run import Record

# Seconds between two plain lines.
_INTERVAL = 10.0
# What is done with what is counted.
_VERBS = dict.fromkeys(("question", "row"), ("answering", "answered")) | {
    "answer": ("giving", "gave")
}


class TrainingProgress(NamedTuple):
    """Two callbacks: for each record of a training, and while it scores the model."""

    record: Callable[[Record], None]
    scoring: Progress


@contextmanager
def training_progress(work: Work, done: int = 0) -> Iterator[TrainingProgress]:
    """Yield the callbacks for a training, of which `done` steps were done before."""
    if sys.stderr.isatty():
        with _training_bar(work, done) as show:
            yield show
    else:
        yield TrainingProgress(_training_lines(work, done), _answering_lines())


@contextmanager
def no_progress() -> Iterator[TrainingProgress]:
    """Yield callbacks that show nothing, for all but one of several processes."""
    yield TrainingProgress(lambda _: None, lambda *_: None)


@contextmanager
def answering_progress(journal: Journal | None = None, of: str = "question") -> Iterator[Progress]:
    """Yield a callback that shows how many questions are answered.

    Args:
        journal: that of the answers. The time that its answers took before counts, so that a job
            that goes on does not seem as fast as reading them from the file.
        of: what is counted, "question", "row" or "answer".
    """
    if sys.stderr.isatty():
        with _bar(transient=True) as bar:
            task = bar.add_task("Answering", total=None, news="", left="")
            yield _answering_bar(bar, task, journal)
    else:
        yield _answering_lines(journal, of)


class _Pace:
    """Decides when the next plain line is due, and estimates the remaining time."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._stopwatch = Stopwatch(journal)
        self._last_line = time.monotonic()

    def is_due(self, *, at_once: bool) -> bool:
        """Return whether to write a line now; if so, the next is due an interval later."""
        now = time.monotonic()
        due = at_once or now - self._last_line >= _INTERVAL
        if due:
            self._last_line = now
        return due

    def left(self, done: float, remaining: float) -> str:
        """Return the time for the remaining units, at the average pace since the start."""
        return _told(Left(self._stopwatch.seconds / done * remaining))


def _training_lines(work: Work, done: int) -> Callable[[Record], None]:
    """Write lines for every evaluation, for the first and the last step, and for some others."""
    pace, time_left, total = _Pace(), TimeLeft(work, done), work.steps

    def show(record: Record) -> None:
        time_left.add(record)
        step = record["step"]
        scored = record["kind"] == "evaluation"
        if not pace.is_due(at_once=scored or step in (done + 1, total)):
            return
        if scored:
            _write(_scored(record, total))
        else:
            left = _told(time_left.now())
            _write(f"step {step}/{total}  {_speed(record)}{left and f', {left}'}")

    return show


def _answering_lines(journal: Journal | None = None, of: str = "question") -> Progress:
    """Write a line at the beginning, because the first ones may take minutes, and some more."""
    pace = _Pace(journal)
    giving, given = _VERBS[of]

    def show(done: float, total: int, part: str = "") -> None:
        nonlocal pace
        where = f" ({part})" if part else ""
        if done == 0:
            pace = _Pace(journal)
            _write(f"{giving} {counted(total, of)}{where}")
        elif pace.is_due(at_once=False):
            left = pace.left(done, total - done)
            _write(f"{given} {int(done):,} of {counted(total, of)}{where}, {left}")

    return show


@contextmanager
def _training_bar(work: Work, done: int) -> Iterator[TrainingProgress]:
    """Show a bar for the steps, a second one while the model is scored, and lines with scores."""
    time_left = TimeLeft(work, done)
    with _bar() as bar:
        training = bar.add_task("Training", total=work.steps, completed=done, news="", left="")
        answering = bar.add_task("Scoring", visible=False, news="", left="")
        show_answering = _answering_bar(bar, answering)

        def record(record: Record) -> None:
            time_left.add(record)
            if record["kind"] == "evaluation":
                bar.update(answering, visible=False)
                bar.console.print(_scored(record, work.steps), highlight=False, markup=False)
            else:
                bar.update(training, completed=record["step"], news=_speed(record))
            bar.update(training, left=_told(time_left.now()))

        def scoring(done: float, total: int, part: str = "") -> None:
            show_answering(done, total, part)
            bar.update(training, left=_told(time_left.now()))

        yield TrainingProgress(record, scoring)


def _answering_bar(
    bar: rich.progress.Progress, task: rich.progress.TaskID, journal: Journal | None = None
) -> Progress:
    """Return a callback that shows in a task's bar how many questions are answered."""
    pace = _Pace(journal)

    def show(done: float, total: int, part: str = "") -> None:
        nonlocal pace
        if done == 0:
            pace = _Pace(journal)
            bar.reset(task, visible=True)
        left = pace.left(done, total - done) if done else ""
        bar.update(task, completed=done, total=total, news=part, left=left)

    return show


def _bar(*, transient: bool = False) -> rich.progress.Progress:
    """Return a bar whose tasks have the fields `news` and `left`.

    rich's own estimate of the time left looks at the last half minute, in which a single strategy
    may answer, and knows of no scorings.
    """
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[news]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
        transient=transient,
    )


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _told(left: Left | None) -> str:
    """Return the time left in words; empty if nothing is known."""
    if left is None:
        return ""
    return f"{'over ' if left.at_least else ''}{clock(left.seconds)} left"


def _speed(record: Record) -> str:
    return f"loss {record['loss']:.3f}  {record['questions_per_second']:.1f} questions/s"


def _scored(record: Record, total: int) -> str:
    return (
        f"step {record['step']}/{total}  EM {record['exact_match']:.1f}  F1 {record['f1']:.1f} "
        f"of {record['total']} dev questions"
    )
