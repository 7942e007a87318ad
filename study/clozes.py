"""Cloze questions from texts that recur in a context."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from loraqa.squad import Answer, Passage, Question

_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
# In words, and in characters.
_LONGEST_SPAN, _SHORTEST_SPAN = 4, 4
_STOPWORDS = frozenset(
    "a an and are as at be been but by for from had has have he her his in into is it its not of "
    "on or she that the their they this to was were which who will with".split()
)


def with_clozes(passages: Sequence[Passage], share: float = 0.4) -> list[Passage]:
    """Add questions made from spans that occur more than once in their context.

    A sentence without the span is the question (Ram et al. 2021, "Splinter"). `share` is the most
    that they may add to the questions of a passage.
    """
    changed = []
    for number, passage in enumerate(passages):
        most = round(share * len(passage.questions))
        clozes = islice(_clozes(passage.context, str(number)), most)
        changed.append(replace(passage, questions=(*passage.questions, *clozes)))
    return changed


def _clozes(context: str, name: str) -> Iterator[Question]:
    """Yield a cloze for each recurring span of a context, the longest spans first."""
    taken: set[int] = set()
    for text, places in sorted(_recurring(context).items(), key=lambda item: -len(item[0])):
        # The last occurrence is asked for, so that an earlier one can answer.
        start, end = places[-1]
        if taken.isdisjoint(range(start, end)):
            taken.update(range(start, end))
            left = max((m.end() for m in _SENTENCE_END.finditer(context, 0, start)), default=0)
            right = next((m.start() for m in _SENTENCE_END.finditer(context, end)), len(context))
            asked = f"{context[left:start]}___{context[end:right]}"
            yield Question(f"cloze-{name}-{start}", asked, (Answer(text, places[0][0]),))


def _recurring(context: str) -> dict[str, list[tuple[int, int]]]:
    """Return the places of each text of a few words that occurs more than once."""
    words = [match.span() for match in _WORD.finditer(context)]
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for length in range(1, _LONGEST_SPAN + 1):
        for first in range(len(words) - length + 1):
            start, end = words[first][0], words[first + length - 1][1]
            text = context[start:end]
            if {text.split()[0].lower(), text.split()[-1].lower()}.isdisjoint(_STOPWORDS):
                places[text].append((start, end))
    return {t: found for t, found in places.items() if len(found) > 1 and len(t) >= _SHORTEST_SPAN}
