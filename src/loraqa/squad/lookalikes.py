"""Find texts in a context, also where they differ from it in look-alike characters only.

Look-alike are texts that become equal when characters are decomposed (Unicode's NFKD), every blank
becomes a space, and invisible characters, such as zero-width spaces and soft hyphens, are removed.
"""

import bisect
import difflib
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice

from loraqa.squad.segmentation import inside_pieces, words

# Lengths of the pieces, in characters: short answers have short pieces only.
_GRAMS = (3, 10)

# It parts no number: "60" does not stand whole in "60,000".
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[.,](?=\d)")

# From which ratio of `difflib` on a passage may be meant by a text that is not in the context.
_SIMILAR = 0.8


def fold(text: str) -> str:
    """Return a text that is the same for all look-alikes."""
    if text.isascii():
        return re.sub(r"\s", " ", text)
    return "".join(folded for folded, _ in _folded_segments(text))


class Occurrences:
    """The occurrences of texts in a context.

    Texts that do not occur are the slow case, because each of them is looked for everywhere. Most
    have a piece of a few characters that does not occur either, so the pieces of the context are
    collected once, in linear time, and such texts are never searched.
    """

    def __init__(self, context: str) -> None:
        self.context = context

    def find(self, text: str, start: int = 0) -> int:
        """Return the first offset of `text` at or after `start`, or -1."""
        return self.context.find(text, start) if self.may_hold(text) else -1

    def may_hold(self, text: str) -> bool:
        """Return False only if the context does not contain `text`."""
        return all(
            text[place : place + size] in grams
            for size, grams in self._grams.items()
            for place in range(len(text) - size + 1)
        )

    def spans(
        self, text: str, fits: Callable[[int, int], bool] = lambda _start, _end: True
    ) -> list[tuple[int, int]]:
        """Return up to two (start, end) of `text` that `fits` accepts; they may overlap.

        Where it stands as whole words, other places do not count: "60" is not meant by "1,260".
        """
        found = list(islice(self._all(text, fits), 2))
        if len(found) < 2:
            return found
        whole = (span for span in self._all(text, fits) if self._is_apart(*span))
        return list(islice(whole, 2)) or found

    def _all(self, text: str, fits: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
        start = self.find(text)
        while start >= 0:
            end = start + len(text)
            if fits(start, end):
                yield start, end
            start = self.context.find(text, start + 1)

    def _is_apart(self, start: int, end: int) -> bool:
        """Return whether a span is no part of a longer word or number."""
        if start in self._inside or end in self._inside:
            return False
        before = start > 0 and _BETWEEN_DIGITS.match(self.context, start - 1)
        return not before and _BETWEEN_DIGITS.match(self.context, end) is None

    @cached_property
    def _inside(self) -> frozenset[int]:
        return inside_pieces(self.context)

    @cached_property
    def _grams(self) -> dict[int, set[str]]:
        context = self.context
        return {
            size: {context[place : place + size] for place in range(len(context) - size + 1)}
            for size in _GRAMS
        }


def nearest(text: str, context: str) -> str:
    """Return the most similar passage of as many words as a text has; empty if none is similar."""
    found, size = words(context), len(words(text))
    passages = (
        context[first:end] for (first, _), (_, end) in zip(found, found[size - 1 :], strict=False)
    )
    return next(iter(difflib.get_close_matches(text, passages, n=1, cutoff=_SIMILAR)), "")


class LookAlikes:
    """The occurrences of look-alikes of texts in a context; a span never parts a character."""

    def __init__(self, context: str) -> None:
        # For each folded character the offsets of the segment it comes from.
        self._starts: list[int] = []
        self._ends: list[int] = []
        folded: list[str] = []
        for characters, (start, end) in _folded_segments(context):
            folded.append(characters)
            self._starts += [start] * len(characters)
            self._ends += [end] * len(characters)
        self._occurrences = Occurrences("".join(folded))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return up to two (start, end) of look-alikes of `text` in the context."""
        wanted = fold(text).strip()
        found = self._occurrences.spans(wanted, self._is_whole) if wanted else []
        return [self._in_context(*span) for span in found]

    def at(self, text: str, start: int) -> tuple[int, int] | None:
        """Return the (start, end) of a look-alike of `text` that begins at character `start`."""
        wanted = fold(text).strip()
        place = bisect.bisect_left(self._starts, start)
        if not wanted or not self._occurrences.context.startswith(wanted, place):
            return None
        span = (place, place + len(wanted))
        if not self._is_whole(*span) or self._starts[place] != start:
            return None
        return self._in_context(*span)

    def _is_whole(self, start: int, end: int) -> bool:
        """Return whether folded characters begin and end where segments do."""
        starts = self._starts
        first = start == 0 or starts[start - 1] != starts[start]
        return first and (end == len(starts) or starts[end] != starts[end - 1])

    def _in_context(self, start: int, end: int) -> tuple[int, int]:
        return self._starts[start], self._ends[end - 1]


class AnswerFinder:
    """Finds the places that an answer may have in a context: its own, else its look-alikes'."""

    def __init__(self, context: str) -> None:
        self.context = context
        self._exact = Occurrences(context)

    @cached_property
    def _look_alikes(self) -> LookAlikes:
        return LookAlikes(self.context)

    def spans(self, text: str, start: int | None = None) -> list[tuple[int, int]]:
        """Return up to two places; a look-alike at `start` is the only one."""
        exact = self._exact.spans(text)
        if exact:
            return exact
        there = None if start is None else self._look_alikes.at(text, start)
        return [there] if there else self._look_alikes.spans(text)


def _folded_segments(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Return each folded character with its marks, and its offsets in `text`."""
    segments = []
    start = 0
    for place in range(1, len(text) + 1):
        # Marks belong to the character before them, and their order does not matter.
        if place < len(text) and not text[place].isascii() and unicodedata.combining(text[place]):
            continue
        folded = _fold_segment(text[start:place])
        if folded:
            segments.append((folded, (start, place)))
        start = place
    return segments


def _fold_segment(segment: str) -> str:
    if segment.isascii():
        return " " if segment.isspace() else segment
    shown = "".join(c for c in segment if unicodedata.category(c) != "Cf")
    return re.sub(r"\s", " ", unicodedata.normalize("NFKD", shown))
