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
from loraqa.train.run import Record

# Seconds between two plain lines.
_INTERVAL = 10.0


class TrainingProgress(NamedTuple):
    """Two callbacks: for each record of a training, and while it scores the model."""

    record: Callable[[Record], None]
    scoring: Progress


@contextmanager
def training_progress(total: int, done: int = 0) -> Iterator[TrainingProgress]:
    """Yield the callbacks for a training of `total` steps, `done` of them before."""
    if sys.stderr.isatty():
        with _training_bar(total, done) as show:
            yield show
    else:
        yield TrainingProgress(_training_lines(total, done), _answering_lines())


@contextmanager
def answering_progress(journal: Journal | None = None) -> Iterator[Progress]:
    """Yield a callback that shows how many prompts are answered.

    Args:
        journal: that of the answers. The time that its answers took before counts, so that a work
            that goes on does not seem as fast as reading them from the file.
    """
    if sys.stderr.isatty():
        with _answering_bar(journal) as show:
            yield show
    else:
        yield _answering_lines(journal)


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

    def left(self, done: int, remaining: int) -> str:
        """Return the time for the remaining units, at the average pace since the start."""
        minutes, seconds = divmod(round(self._stopwatch.seconds / done * remaining), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}" if hours else f"{minutes}"
        return f"{clock}:{seconds:02} left"


def _training_lines(total: int, done: int) -> Callable[[Record], None]:
    """Write lines for every evaluation, for the first and the last step, and for some others."""
    pace = _Pace()

    def show(record: Record) -> None:
        step = record["step"]
        scored = record["kind"] == "evaluation"
        if not pace.is_due(at_once=scored or step in (done + 1, total)):
            return
        if scored:
            _write(_scored(record, total))
        else:
            left = pace.left(step - done, total - step)
            _write(f"step {step}/{total}  {_speed(record)}, {left}")

    return show


def _answering_lines(journal: Journal | None = None) -> Progress:
    """Write a line at the beginning, because the first prompts may take minutes, and some more."""
    pace = _Pace(journal)

    def show(done: int, total: int, part: str = "") -> None:
        nonlocal pace
        where = f" ({part})" if part else ""
        if done == 0:
            pace = _Pace(journal)
            _write(f"answering {counted(total, 'prompt')}{where}")
        elif pace.is_due(at_once=False):
            left = pace.left(done, total - done)
            _write(f"answered {done:,} of {total:,} prompts{where}, {left}")

    return show


@contextmanager
def _training_bar(total: int, done: int) -> Iterator[TrainingProgress]:
    """Show a bar for the steps, a second one while the model is scored, and lines with scores."""
    with _bar(rich.progress.TimeRemainingColumn()) as bar:
        training = bar.add_task("Training", total=total, completed=done, news="")
        answering = bar.add_task("Scoring", visible=False, news="")

        def record(record: Record) -> None:
            if record["kind"] == "evaluation":
                bar.update(answering, visible=False)
                bar.console.print(_scored(record, total), highlight=False, markup=False)
            else:
                bar.update(training, completed=record["step"], news=_speed(record))

        def scoring(done: int, total: int, part: str = "") -> None:
            if done == 0:
                bar.reset(answering, visible=True)
            bar.update(answering, completed=done, total=total, news=part)

        yield TrainingProgress(record, scoring)


@contextmanager
def _answering_bar(journal: Journal | None) -> Iterator[Progress]:
    # rich's own estimate looks at the last half minute, in which a single strategy may answer.
    with _bar(rich.progress.TextColumn("{task.fields[left]}"), transient=True) as bar:
        task = bar.add_task("Answering", total=None, news="", left="")
        pace = _Pace(journal)

        def show(done: int, total: int, part: str = "") -> None:
            nonlocal pace
            if done == 0:
                pace = _Pace(journal)
            left = pace.left(done, total - done) if done else ""
            bar.update(task, completed=done, total=total, news=part, left=left)

        yield show


def _bar(left: rich.progress.ProgressColumn, *, transient: bool = False) -> rich.progress.Progress:
    """Return a bar whose last column, `left`, shows the time that is left."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[news]}"),
        rich.progress.TimeElapsedColumn(),
        left,
        console=Console(stderr=True),
        transient=transient,
    )


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _speed(record: Record) -> str:
    return f"loss {record['loss']:.3f}  {record['questions_per_second']:.1f} questions/s"


def _scored(record: Record, total: int) -> str:
    return (
        f"step {record['step']}/{total}  EM {record['exact_match']:.1f}  F1 {record['f1']:.1f} "
        f"of {record['total']} dev questions"
    )
