"""Where in its context an answer stands that the model wrote freely."""

import re
from collections.abc import Iterator


def locate(text: str, context: str, window: tuple[int, int]) -> tuple[int, int] | None:
    """Character offsets (start, end) of `text` in `context`, or None where it does not stand.

    As whole words and to the letter, if it stands so; else whatever its case, white space and
    punctuation between words; else as part of a word. The first place in the window that the
    answer was read from comes before one elsewhere.
    """
    if not text or not _may_stand(text, context):
        return None
    for pattern in _patterns(text):
        found = pattern.search(context, *window) or pattern.search(context)
        if found:
            return found.span()
    return None


def _patterns(text: str) -> Iterator[re.Pattern[str]]:
    exact = re.escape(text)
    yield re.compile(_whole_words(exact, text))
    words = r"[\W_]+".join(map(re.escape, _words(text)))
    if words:
        yield re.compile(rf"\b{words}\b", re.IGNORECASE)
    yield re.compile(exact)


def _may_stand(text: str, context: str) -> bool:
    """False only if no pattern can match: to compile them takes longer than to look for words."""
    # Beyond ASCII, what is the same letter in another case is for `re` to say.
    if not (text.isascii() and context.isascii()):
        return True
    lowered = context.lower()
    return all(word in lowered for word in _words(text.lower()))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _whole_words(pattern: str, text: str) -> str:
    """Let no word go on at either end, where `text` has a word there."""
    before = r"(?<!\w)" if re.match(r"\w", text) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", text) else ""
    return before + pattern + after
