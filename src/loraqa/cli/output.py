"""What commands print, and the notice while PyTorch is imported."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loraqa.garbage import importing
from loraqa.notices import status_line

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def importing_pytorch() -> Iterator[None]:
    """Import what computes, which takes seconds."""
    with status_line("Loading PyTorch …"), importing():
        yield


def new_console(*, stderr: bool = False) -> "Console":
    """Return a console for standard output, or for standard error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=False)


def tell(line: str) -> None:
    """Write a line to standard error. It is not broken, so that a path in it can be copied."""
    sys.stderr.write(line + "\n")


def print_json(value: Any) -> None:
    """Write one line of JSON to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def command_line() -> str:
    """Return the command as the user gave it."""
    return shlex.join(["loraqa", *sys.argv[1:]])
