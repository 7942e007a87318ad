"""Ctrl-C and SIGTERM stop the training between two steps, with a checkpoint."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from loraqa.errors import LoraqaError

T = TypeVar("T")


class StoppedError(LoraqaError):
    """The user stopped the work. The exit status is 128 + signal, as in shells: 130 or 143."""

    def __init__(self, message: str, received: signal.Signals) -> None:
        super().__init__(message)
        self.received = received
        self.exit_code = 128 + received


class StopRequest:
    """A context manager that turns the first SIGINT or SIGTERM into a request to stop.

    A later SIGINT is handled as before entering, so a second Ctrl-C ends at once. A later SIGTERM
    changes nothing: one stop may send several, because Slurm signals all processes of a job, and
    `torchrun` passes on what it receives.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._at_once = False

    def __enter__(self) -> "StopRequest":
        # Python allows only the main thread to set signal handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._before):
            self._restore(number)

    def unless_stopped(self, work: Callable[[], T]) -> T | None:
        """Return what `work` returns, or None as soon as a stop is requested."""
        if self.received:
            return None
        try:
            try:
                self._at_once = True
                return work()
            finally:
                self._at_once = False
        except _Abandoned:
            return None

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received:
            return
        self._restore(signal.SIGINT)
        self.received = signal.Signals(number)
        if self._at_once:
            raise _Abandoned

    def _restore(self, number: signal.Signals) -> None:
        signal.signal(number, self._before.pop(number))


class _Abandoned(BaseException):
    """Raised to abandon work. Not an `Exception`, so that no library swallows it."""
