"""Where in its context an answer stands that the model wrote freely."""

import re
from functools import lru_cache

Place = tuple[int, int]


def locate(text: str, context: str, window: Place) -> Place | None:
    """Character offsets (start, end) of `text` in `context`, or None where it does not stand.

    As whole words and to the letter, if it stands so; else whatever its case, white space and
    punctuation between words; else as part of a word. The first place in the window that the
    answer was read from comes before one elsewhere.
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
    """Where no word goes on at either end of `text`, if a word of it is there."""
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
    # To compile a pattern takes longer than to see that it cannot match. In a window a last word
    # may be cut, and beyond ASCII only `re` knows what is the same letter in another case.
    whole = within[1] == len(context) and text.isascii() and context.isascii()
    if not words or (whole and f" {' '.join(words)} ".lower() not in _words_only(context)):
        return None
    pattern = r"[\W_]+".join(map(re.escape, words))
    found = re.compile(rf"\b{pattern}\b", re.IGNORECASE).search(context, *within)
    return found.span() if found else None


# All questions about a context come one after another.
@lru_cache(maxsize=1)
def _words_only(context: str) -> str:
    return f" {' '.join(_words(context))} ".lower()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _find_part(text: str, context: str, within: Place) -> Place | None:
    place = context.find(text, *within)
    return (place, place + len(text)) if place >= 0 else None
