"""Find the place of a freely written answer in its context."""

import unicodedata
from functools import lru_cache

from loraqa.squad.segmentation import (
    Span,
    inside_graphemes,
    inside_pieces,
    without_format,
    words,
)


def locate(text: str, context: str, window: Span) -> Span | None:
    """Return the character offsets (start, end) of `text` in `context`, or None.

    Tries three matches in turn: exactly, as whole words; as words, ignoring case and the white
    space and punctuation between words; exactly, as part of a word, but not of a grapheme. Each
    prefers the first place in `window`, which the answer was read from, to the first in the rest of
    the context.
    """
    if not text:
        return None
    for find in (_find_whole_words, _find_words_in_any_case, _find_part):
        for within in (window, (0, len(context))):
            place = find(text, context, within)
            if place:
                return place
    return None


def _find_whole_words(text: str, context: str, within: Span) -> Span | None:
    return _find(text, context, within, inside_pieces(context))


def _find_part(text: str, context: str, within: Span) -> Span | None:
    return _find(text, context, within, inside_graphemes(context))


def _find(text: str, context: str, within: Span, forbidden: frozenset[int]) -> Span | None:
    """Find `text` where it neither starts nor ends at a forbidden offset."""
    place = context.find(text, *within)
    while place >= 0:
        after = place + len(text)
        if place not in forbidden and after not in forbidden:
            return place, after
        place = context.find(text, place + 1, within[1])
    return None


def _find_words_in_any_case(text: str, context: str, within: Span) -> Span | None:
    wanted = _words_only(text, words(text))
    places, folded = _folded_words(context)
    # Words are between blanks, so the blanks before a match count the words before it.
    found = folded.find(wanted) if wanted.strip() else -1
    while found >= 0:
        first = folded.count(" ", 0, found)
        start, end = places[first][0], places[first + wanted.count(" ") - 2][1]
        if within[0] <= start and end <= within[1]:
            return start, end
        found = folded.find(wanted, found + 1)
    return None


# The questions about a context come one after another.
@lru_cache(maxsize=1)
def _folded_words(context: str) -> tuple[list[Span], str]:
    places = words(context)
    return places, _words_only(context, places)


def _words_only(text: str, places: list[Span]) -> str:
    """Return the words at these places, each between two blanks, without differences of case.

    Accents are one code point, whether they were written as a mark of their own or not, and
    invisible format characters, such as soft hyphens, are left out.
    """
    plain = (unicodedata.normalize("NFC", text[start:end].casefold()) for start, end in places)
    return without_format(f" {' '.join(plain)} ")
