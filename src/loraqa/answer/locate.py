"""Find the place of a freely written answer in its context."""

import re
from functools import lru_cache

Place = tuple[int, int]


def locate(text: str, context: str, window: Place) -> Place | None:
    """Return the character offsets (start, end) of `text` in `context`, or None.

    Tries three matches in turn: exactly, as whole words; as words, ignoring case and the white
    space and punctuation between words; exactly, as part of a word. Each prefers the first place in
    `window`, which the answer was read from, to the first in the rest of the context.
    """
    if not text:
        return None
    for find in (_find_whole_words, _find_words_in_any_case, _find_part):
        for within in (window, (0, len(context))):
            place = find(text, context, within)
            if place:
                return place
    return None


def _find_whole_words(text: str, context: str, within: Place) -> Place | None:
    """Find `text` where it neither starts nor ends inside a word."""
    start, end = within
    place = context.find(text, start, end)
    while place >= 0:
        after = place + len(text)
        goes_on = _is_word(text[0]) and place > 0 and _is_word(context[place - 1])
        if not goes_on and not (_is_word(text[-1]) and after < end and _is_word(context[after])):
            return place, after
        place = context.find(text, place + 1, end)
    return None


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _find_words_in_any_case(text: str, context: str, within: Place) -> Place | None:
    words = _words(text)
    # Checking that a pattern cannot match is faster than compiling it. The check needs the end of
    # the context, because a window may cut its last word, and ASCII, because only `re` knows which
    # other letters are equal but for case.
    whole = within[1] == len(context) and text.isascii() and context.isascii()
    if not words or (whole and f" {' '.join(words)} ".lower() not in _words_only(context)):
        return None
    pattern = r"[\W_]+".join(map(re.escape, words))
    found = re.compile(rf"\b{pattern}\b", re.IGNORECASE).search(context, *within)
    return found.span() if found else None


# The questions about a context come one after another.
@lru_cache(maxsize=1)
def _words_only(context: str) -> str:
    return f" {' '.join(_words(context))} ".lower()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _find_part(text: str, context: str, within: Place) -> Place | None:
    place = context.find(text, *within)
    return (place, place + len(text)) if place >= 0 else None
