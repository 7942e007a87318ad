"""Show the library's log messages on standard error, and what is being waited for."""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loraqa.errors import LONGEST, shortened

_CLEAR_LINE = "\r\x1b[2K"


class _Brief(logging.Formatter):
    """Formats messages of limited length."""

    def format(self, record: logging.LogRecord) -> str:
        return shortened(super().format(record), LONGEST)


class _Notices(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes messages to standard error, above the status line if there is one."""

    status = ""

    def emit(self, record: logging.LogRecord) -> None:
        if not self.status:
            super().emit(record)
            return
        self.stream.write(_CLEAR_LINE)
        super().emit(record)
        self.stream.write(self.status)
        self.flush()


def show_notices() -> None:
    """Send loraqa's log messages to standard error, and silence those of transformers."""
    handler = _Notices()
    handler.setFormatter(_Brief("loraqa: %(message)s"))
    notices = logging.getLogger("loraqa")
    notices.addHandler(handler)
    notices.setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextmanager
def status_line(text: str) -> Iterator[None]:
    """Show a line on standard error, if that is a terminal, until the work inside is done.

    Nothing is shown where log messages are not.
    """
    if not (sys.stderr.isatty() and logging.getLogger("loraqa").isEnabledFor(logging.INFO)):
        yield
        return
    # A line that the terminal wraps could not be cleared.
    line = shortened(text, max(shutil.get_terminal_size().columns - 4, 0))
    sys.stderr.write(line)
    sys.stderr.flush()
    _Notices.status = line
    try:
        yield
    finally:
        _Notices.status = ""
        sys.stderr.write(_CLEAR_LINE)
        sys.stderr.flush()
