"""What the library notes, on standard error."""

import logging
import os


def show_notices() -> None:
    """What the library notes goes to standard error, and other libraries' chatter nowhere."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("loraqa: %(message)s"))
    notices = logging.getLogger("loraqa")
    notices.addHandler(handler)
    notices.setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
