"""Show the library's log messages on standard error."""

import logging
import os

from loraqa.errors import LONGEST, shortened


class _Brief(logging.Formatter):
    """Formats messages of limited length."""

    def format(self, record: logging.LogRecord) -> str:
        return shortened(super().format(record), LONGEST)


def show_notices() -> None:
    """Send loraqa's log messages to standard error, and silence those of transformers."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Brief("loraqa: %(message)s"))
    notices = logging.getLogger("loraqa")
    notices.addHandler(handler)
    notices.setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
