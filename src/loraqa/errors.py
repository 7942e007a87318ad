"""Errors for users. A message is one sentence: what is wrong, where, and what to do."""

import difflib
from collections.abc import Collection
from itertools import islice


class LoraqaError(Exception):
    """A failure of the work. The command line exits with status 1."""

    exit_code = 1


class InputError(LoraqaError):
    """Wrong arguments or input. The command line exits with status 2."""

    exit_code = 2


def explain(error: LoraqaError | OSError) -> tuple[str, int]:
    """Return the message and the exit status for an error."""
    if isinstance(error, LoraqaError):
        return str(error), error.exit_code
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}.", 1


def some_of(names: Collection[str], most: int = 5) -> str:
    """Return the first `most` names and the number of the others, for a message."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(islice(names, most)) + more


def in_a_line(problem: Exception) -> str:
    """Return an exception's first line, for a message; for a compiler's error that of its cause."""
    cause = getattr(problem, "inner_exception", problem)
    return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".!")


def quote(text: str, most: int = 60) -> str:
    """Return at most `most` characters of a text in quotation marks, for a message."""
    return repr(text if len(text) <= most else f"{text[:most]}…")


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Return a hint at the most similar of the names, for a message; empty if none is similar."""
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
