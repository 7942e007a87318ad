"""Show progress on standard error: a bar on a terminal, otherwise a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console

from loraqa.answer.progress import Progress
from loraqa.train.run import Record

# Seconds between two plain lines.
_INTERVAL = 10.0


@contextmanager
def training_progress(total: int, done: int = 0) -> Iterator[Callable[[Record], None]]:
    """Yield a callback for each record of a training of `total` steps, `done` of them before."""
    if sys.stderr.isatty():
        with _training_bar(total, done) as show:
            yield show
    else:
        yield _training_lines(total, done)


@contextmanager
def answering_progress() -> Iterator[Progress]:
    """Yield a callback that shows how many prompts are answered."""
    if sys.stderr.isatty():
        with _answering_bar() as show:
            yield show
    else:
        yield _answering_lines()


class _Pace:
    """Decides when the next plain line is due, and estimates the remaining time."""

    def __init__(self) -> None:
        self._start = self._last_line = time.monotonic()

    def is_due(self, *, at_once: bool) -> bool:
        """Return whether to write a line now; if so, the next is due an interval later."""
        now = time.monotonic()
        due = at_once or now - self._last_line >= _INTERVAL
        if due:
            self._last_line = now
        return due

    def left(self, done: int, remaining: int) -> str:
        """Return the time for the remaining units, at the average pace since the start."""
        minutes, seconds = divmod(round((time.monotonic() - self._start) / done * remaining), 60)
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
            news = f"{_scores(record)} of {record['total']} dev questions"
        else:
            news = f"{_speed(record)}, {pace.left(step - done, total - step)}"
        _write(f"step {step}/{total}  {news}")

    return show


def _answering_lines() -> Progress:
    pace = _Pace()

    def show(done: int, total: int, part: str = "") -> None:
        if pace.is_due(at_once=False):
            where = f" ({part})" if part else ""
            left = pace.left(done, total - done)
            _write(f"answered {done:,} of {total:,} prompts{where}, {left}")

    return show


@contextmanager
def _training_bar(total: int, done: int) -> Iterator[Callable[[Record], None]]:
    news = rich.progress.TextColumn("{task.fields[speed]}  {task.fields[scores]}")
    with _bar(news) as bar:
        task = bar.add_task("Training", total=total, completed=done, speed="", scores="")

        def show(record: Record) -> None:
            if record["kind"] == "evaluation":
                bar.update(task, scores=_scores(record))
            else:
                bar.update(task, completed=record["step"], speed=_speed(record))

        yield show


@contextmanager
def _answering_bar() -> Iterator[Progress]:
    with _bar(rich.progress.TextColumn("{task.fields[part]}"), transient=True) as bar:
        task = bar.add_task("Answering", total=None, part="")

        def show(done: int, total: int, part: str = "") -> None:
            bar.update(task, completed=done, total=total, part=part)

        yield show


def _bar(news: rich.progress.ProgressColumn, *, transient: bool = False) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        news,
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=transient,
    )


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _speed(record: Record) -> str:
    return f"loss {record['loss']:.3f}  {record['questions_per_second']:.1f} questions/s"


def _scores(record: Record) -> str:
    return f"EM {record['exact_match']:.1f}  F1 {record['f1']:.1f}"
