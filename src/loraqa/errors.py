"""The errors a user can meet. Their message is one sentence: what, where, and what to do."""

from collections.abc import Collection
from itertools import islice


class LoraqaError(Exception):
    """The work failed. The command line exits with status 1."""

    exit_code = 1


class InputError(LoraqaError):
    """The arguments or the input are wrong. The command line exits with status 2."""

    exit_code = 2


def explain(error: LoraqaError | OSError) -> tuple[str, int]:
    """What to say of an error, and the exit status."""
    if isinstance(error, LoraqaError):
        return str(error), error.exit_code
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}.", 1


def some_of(names: Collection[str], most: int = 5) -> str:
    """The first of some names, and how many more there are, for a message."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(islice(names, most)) + more


def in_a_line(problem: Exception) -> str:
    """What went wrong, for a message; where a compiler only passes it on, what it ran into."""
    cause = getattr(problem, "inner_exception", problem)
    return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".!")


def quote(text: str, most: int = 60) -> str:
    """The beginning of a text in quotation marks, for a message."""
    return repr(text if len(text) <= most else f"{text[:most]}…")
