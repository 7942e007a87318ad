"""Slices of a data set: the questions that are alike in one respect."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import regex

from loraqa.analysis.outcome import Asked
from loraqa.analysis.sentences import sentence_at, sentences
from loraqa.squad import normalize_answer
from loraqa.squad.segmentation import words

_NO_ANSWER, _NO_PLACE = "no answer", "no place"

_QUESTION_WORDS = ("who", "what", "when", "where", "which", "why", "how many", "how much", "how")
_FORMS = {"whom": "who", "whose": "who", "what's": "what", "who's": "who"}
_QUESTION_WORD = regex.compile(rf"\b({'|'.join([*_FORMS, *_QUESTION_WORDS])})\b", regex.IGNORECASE)
# Words of a question that say nothing of what it is about.
_EMPTY = frozenset(
    "a an the of in on at to for from by with as and or is are was were be been being do does did "
    "has have had can could will would should it its his her their this that there "
    "who whom whose what when where which why how many much s".split()
)


@dataclass(frozen=True, slots=True)
class Dimension:
    """A respect in which questions are alike.

    Attributes:
        name: its name.
        labels: all labels of its slices, in order.
        label: returns the label of a question, given its context.
    """

    name: str
    labels: tuple[str, ...]
    label: Callable[[str, Asked], str]


def labels_of(context: str, asked: Asked) -> dict[str, str]:
    """Return the label of a question in each dimension."""
    return {dimension.name: dimension.label(context, asked) for dimension in DIMENSIONS}


def _question_word(_context: str, asked: Asked) -> str:
    """Return the first question word, wherever it stands: "In which year …" is a "which"."""
    found = _QUESTION_WORD.search(asked.question)
    if found is None:
        return "other"
    word = found[1].lower()
    return _FORMS.get(word, word)


class _Bins:
    """Intervals of numbers: up to the first limit, up to the second, ..., more than the last."""

    def __init__(self, limits: Sequence[int], unit: str) -> None:
        self._limits = limits
        between = (
            f"{low + 1:,} {unit}" if low + 1 == high else f"{low + 1:,} to {high:,} {unit}"
            for low, high in pairwise(limits)
        )
        first = f"1 {unit.rstrip('s')}" if limits[0] == 1 else f"up to {limits[0]:,} {unit}"
        self.labels = (first, *between, f"more than {limits[-1]:,} {unit}")

    def label(self, number: float) -> str:
        return self.labels[sum(number > limit for limit in self._limits)]


_ANSWER_WORDS = _Bins((1, 2, 4, 8), "words")
_CONTEXT_WORDS = _Bins((50, 100, 150, 200, 400, 1000), "words")
_GOLDS = _Bins((1, 2, 3), "golds")
_QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")
_SHARES = ("less than 25%", "25% to 50%", "50% to 75%", "75% or more")


def _answer_length(_context: str, asked: Asked) -> str:
    """Count the words of the shortest gold."""
    if not asked.golds:
        return _NO_ANSWER
    return _ANSWER_WORDS.label(min(len(words(gold.text)) for gold in asked.golds))


def _position(context: str, asked: Asked) -> str:
    """Return the quarter of the context in which the first gold starts."""
    if not asked.golds:
        return _NO_ANSWER
    start = _first_start(asked)
    return _NO_PLACE if start is None else _QUARTERS[4 * start // len(context)]


def _context_length(context: str, _asked: Asked) -> str:
    return _CONTEXT_WORDS.label(_word_count(context))


def _golds(_context: str, asked: Asked) -> str:
    """Count the golds that differ after normalization."""
    if not asked.golds:
        return _NO_ANSWER
    return _GOLDS.label(len({normalize_answer(gold.text) for gold in asked.golds}))


def _overlap(context: str, asked: Asked) -> str:
    """Return which share of the question's words stands in the sentence with the first gold.

    Question words, auxiliaries and the like do not count. Without a place it is the sentence that
    shares most.
    """
    start = _first_start(asked)
    spans = sentences(context) if start is None else (sentence_at(context, start),)
    of_question = _word_set(asked.question) - _EMPTY
    if not of_question:
        return _SHARES[0]
    shared = max(len(of_question & _word_set(context[slice(*span)])) for span in spans)
    return _SHARES[min(4 * shared // len(of_question), 3)]


def _first_start(asked: Asked) -> int | None:
    return next((gold.start for gold in asked.golds if gold.start is not None), None)


# The questions about a context come one after another.
@lru_cache(maxsize=1)
def _word_count(context: str) -> int:
    return len(words(context))


@lru_cache(maxsize=1000)
def _word_set(text: str) -> frozenset[str]:
    lower = text.lower()
    return frozenset(lower[slice(*span)] for span in words(lower))


DIMENSIONS = (
    Dimension("question word", (*_QUESTION_WORDS, "other"), _question_word),
    Dimension("answer length", (*_ANSWER_WORDS.labels, _NO_ANSWER), _answer_length),
    Dimension("position of the answer", (*_QUARTERS, _NO_PLACE, _NO_ANSWER), _position),
    Dimension("context length", _CONTEXT_WORDS.labels, _context_length),
    Dimension("different golds", (*_GOLDS.labels, _NO_ANSWER), _golds),
    Dimension("words shared by question and sentence", _SHARES, _overlap),
)
