"""Errors for users. A message is one sentence: what is wrong, where, and what to do."""

import difflib
import errno
import re
from collections.abc import Collection
from itertools import islice
from pathlib import Path

# What to do about errors of the operating system.
_ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, because your quota is used up",
    errno.EROFS: "use a folder that can be written to",
    errno.EACCES: "see who may use it (`ls -l`)",
    errno.EPERM: "see who may use it (`ls -l`)",
    errno.EMFILE: "let more files be open (`ulimit -n 4096`)",
    errno.ENFILE: "end other programs, because the system has too many files open",
    errno.EIO: "see whether its disk is failing",
}

LONGEST = 4000
"""The most characters of a message, because what it quotes may have any length."""


class LoraqaError(Exception):
    """A failure of the work. The command line exits with status 1."""

    exit_code = 1


class InputError(LoraqaError):
    """Wrong arguments or input. The command line exits with status 2."""

    exit_code = 2


class DivergedError(LoraqaError):
    """A training whose loss, gradient or weights are not finite any more."""


class FileError(OSError):
    """An `OSError` that names the file and says what cannot be done with it.

    Args:
        error: the error of the operating system.
        path: the file or folder.
        done: "read", "written" or "locked".
    """

    def __init__(self, error: OSError, path: Path, done: str) -> None:
        super().__init__(error.errno, error.strerror or in_a_line(error), str(path))
        self.done = done

    def __str__(self) -> str:
        return f"{self.filename} cannot be {self.done} ({self.strerror})"


def explain(error: LoraqaError | OSError) -> tuple[str, int]:
    """Return the message, of limited length, and the exit status for an error."""
    if isinstance(error, LoraqaError):
        return shortened(str(error), LONGEST), error.exit_code
    advice = f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
    # An argument that is no path was taken for one.
    status = 2 if error.errno == errno.ENAMETOOLONG else 1
    return f"{shortened(_what(error), LONGEST // 8)}{advice}.", status


def explained(message: str, status: int) -> LoraqaError:
    """Return an error with the message and exit status that `explain` gave in another process."""
    return (InputError if status == InputError.exit_code else LoraqaError)(message)


def _what(error: OSError) -> str:
    if isinstance(error, FileError) or error.strerror is None:
        return str(error)
    if error.filename:
        return f"{error.filename}: {error.strerror}"
    # Every file is named.
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"The output cannot be written ({error.strerror})" if full else error.strerror


def shortened(text: str, most: int) -> str:
    """Return a text with its middle left out if it has more than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … {text[len(text) - most // 2 :]}"


def counted(number: int, noun: str) -> str:
    """Return a number and a noun: "1 context", but "2,000 contexts"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def some_of(names: Collection[str], most: int = 5) -> str:
    """Return the first `most` names and the number of the others, for a message."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shortened(name, 100) for name in islice(names, most)) + more


def in_a_line(problem: Exception) -> str:
    """Return an exception's first line, for a message; for a compiler's error that of its cause.

    A line that ends with a colon only announces the next one.
    """
    cause = getattr(problem, "inner_exception", problem)
    if isinstance(cause, KeyError):
        return f"there is no {cause}"
    lines = re.sub(r":\s*\n\s*", ": ", str(cause).strip()) or type(cause).__name__
    return lines.splitlines()[0].rstrip(".!")


def quote(text: str, most: int = 60) -> str:
    """Return at most `most` characters of a text in quotation marks, for a message."""
    return repr(text if len(text) <= most else f"{text[:most]}…")


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Return a hint at the most similar of the names, for a message; empty if none is similar."""
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
