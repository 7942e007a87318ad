"""What the user sees of a training, on standard error: a bar on a terminal, else plain lines."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from loraqa.train.run import Record

# Between two plain lines, in seconds.
_INTERVAL = 10.0


@contextmanager
def show_progress(total: int, done: int = 0) -> Iterator[Callable[[Record], None]]:
    """Yield what is to be told every record of a training of `total` steps, `done` before."""
    if sys.stderr.isatty():
        with _bar(total, done) as show:
            yield show
    else:
        yield PlainLines(total, done, sys.stderr)


class PlainLines:
    """Writes a line for every scoring, for the first and last step and every few seconds."""

    def __init__(self, total: int, done: int, stream: TextIO, interval: float = _INTERVAL) -> None:
        self._total = total
        self._done = done
        self._stream = stream
        self._interval = interval
        self._start = time.monotonic()
        self._last_line = -interval + self._start

    def __call__(self, record: Record) -> None:
        """Take note of a record."""
        now = time.monotonic()
        late = now - self._last_line >= self._interval
        if record["kind"] == "evaluation" or late or record["step"] == self._total:
            self._last_line = now
            self._stream.write(self._line(record, now) + "\n")
            self._stream.flush()

    def _line(self, record: Record, now: float) -> str:
        step = record["step"]
        place = f"step {step}/{self._total}"
        if record["kind"] == "evaluation":
            return f"{place}  {_scores(record)} of {record['total']} dev questions"
        left = (now - self._start) / (step - self._done) * (self._total - step)
        return f"{place}  {_speed(record)}, {_duration(left)} left"


@contextmanager
def _bar(total: int, done: int) -> Iterator[Callable[[Record], None]]:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}  {task.fields[scores]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Training", total=total, completed=done, speed="", scores="")

        def show(record: Record) -> None:
            if record["kind"] == "evaluation":
                progress.update(task, scores=_scores(record))
            else:
                progress.update(task, completed=record["step"], speed=_speed(record))

        yield show


def _speed(record: Record) -> str:
    return f"loss {record['loss']:.3f}  {record['questions_per_second']:.1f} questions/s"


def _scores(record: Record) -> str:
    return f"EM {record['exact_match']:.1f}  F1 {record['f1']:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
