"""Show the library's log messages on standard error."""

import logging
import os


def show_notices() -> None:
    """Send loraqa's log messages to standard error, and silence those of transformers."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("loraqa: %(message)s"))
    notices = logging.getLogger("loraqa")
    notices.addHandler(handler)
    notices.setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
