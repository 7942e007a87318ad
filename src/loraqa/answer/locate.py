"""Where in its context an answer stands that the model wrote freely."""

import re


def locate(text: str, context: str, window: tuple[int, int]) -> tuple[int, int] | None:
    """Character offsets (start, end) of `text` in `context`, or None where it does not stand.

    As whole words and to the letter, if it stands so; else whatever its case, white space and
    punctuation between words; else as part of a word. The first place in the window that the
    answer was read from comes before one elsewhere.
    """
    if not text:
        return None
    for pattern in _patterns(text):
        found = pattern.search(context, *window) or pattern.search(context)
        if found:
            return found.span()
    return None


def _patterns(text: str) -> list[re.Pattern[str]]:
    exact = re.escape(text)
    words = r"[\W_]+".join(map(re.escape, re.findall(r"[^\W_]+", text)))
    return [
        re.compile(_whole_words(exact, text)),
        *([re.compile(rf"\b{words}\b", re.IGNORECASE)] if words else []),
        re.compile(exact),
    ]


def _whole_words(pattern: str, text: str) -> str:
    """Let no word go on at either end, where `text` has a word there."""
    before = r"(?<!\w)" if re.match(r"\w", text) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", text) else ""
    return before + pattern + after
