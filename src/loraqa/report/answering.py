"""How far the answering is, on standard error: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Between two plain lines, in seconds.
_INTERVAL = 10.0

Report = Callable[[int, int], None]


@contextmanager
def answering_progress() -> Iterator[Report]:
    """Yield what is to be told how many questions of how many are answered."""
    if sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _plain_lines()


@contextmanager
def _bar() -> Iterator[Report]:
    columns = [
        TextColumn("Answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _plain_lines() -> Report:
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _INTERVAL:
            last = now
            left = (now - start) / done * (total - done)
            sys.stderr.write(f"answered {done:,} of {total:,} questions, {left:.0f} s left\n")

    return report
