"""What the names of columns, and of keys in JSON, mean. Only their letters and digits count."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from loraqa.errors import InputError, some_of

# Columns that may hold the answers, the first that there is.
ANSWER_COLUMNS = ("answers", "answer_text", "answer")
_COLUMNS = (
    *("id", "title", "context", "question", "answer_start", "is_impossible", "is_answerable"),
    *ANSWER_COLUMNS,
)
_BY_LETTERS = {name.replace("_", ""): name for name in _COLUMNS} | {
    # Tables that were flattened have a column for each part of the answers.
    "answerstext": "answer_text",
    "answersanswerstart": "answer_start",
    "answerable": "is_answerable",
    "hasanswer": "is_answerable",
    "unanswerable": "is_impossible",
    "isunanswerable": "is_impossible",
}


@lru_cache
def column(name: Hashable) -> str | None:
    """Return the column that a name means; None if it means none."""
    return _BY_LETTERS.get("".join(filter(str.isalnum, str(name).casefold())))


def by_meaning(node: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the values of the keys that mean something, by what they mean.

    Raises `ValueError` if two keys mean the same and none is written in the standard way.
    """
    return {meaning: node[name] for meaning, name in _known_columns(tuple(node)).items()}


def check_columns(names: Collection[Hashable], source: str, hint: str = "") -> None:
    """Raise `InputError` if a table lacks a column, or has one twice.

    Args:
        names: the names of all columns.
        source: the table's name, for the message.
        hint: what else may be wrong, for the message.
    """
    missing = _missing(names, source)
    if not any(column(name) in ANSWER_COLUMNS for name in names):
        missing.append("'answers'")
    needed = "context, question, and answers (or answer_text, or answer)"
    _refuse_if_any(missing, names, source, needed + hint)


def check_columns_to_answer(
    names: Collection[Hashable], needed: Sequence[str], source: str, hint: str = ""
) -> None:
    """Do as `check_columns` with questions that have no answers yet, and maybe no contexts."""
    told = f"context and question (or question alone, with --context-file){hint}"
    _refuse_if_any(_missing(names, source, needed), names, source, told)


def _missing(
    names: Collection[Hashable], source: str, needed: Sequence[str] = ("context", "question")
) -> list[str]:
    """Return the needed columns that are missing; raise `InputError` for one twice."""
    try:
        known = _known_columns(tuple(names))
    except ValueError as error:
        raise InputError(f"{source}: {error}; rename or remove one.") from None
    return [repr(name) for name in needed if name not in known]


def _refuse_if_any(
    missing: list[str], names: Collection[Hashable], source: str, needed: str
) -> None:
    if missing:
        given = some_of([repr(name) for name in names], 12) or "none"
        raise InputError(
            f"{source} has no column {' or '.join(missing)}; a table of questions needs the "
            f"columns {needed}, but this one has {given}."
        )


@lru_cache
def _known_columns(names: tuple[Hashable, ...]) -> dict[str, Hashable]:
    """Return the names of the columns that mean something, by what they mean.

    Raises `ValueError` if two names mean the same and none is written in the standard way.
    """
    known: dict[str, Hashable] = {}
    for meaning in _COLUMNS:
        means = [name for name in names if column(name) == meaning]
        if not means:
            continue
        name, *others = [name for name in means if name == meaning] or means
        if others:
            raise ValueError(f"the columns {name!r} and {others[0]!r} both mean {meaning!r}")
        known[meaning] = name
    return known
