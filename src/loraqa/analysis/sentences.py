"""The sentences of a text, by a simple rule.

A sentence ends

- at a full stop, question mark or exclamation mark, with quotes and brackets that close after it,
  if a blank and then no small letter follow;
- at such a mark of Chinese, Japanese or Hindi;
- at the end of a line.

A full stop after a single capital letter ends nothing: "J. Smith", "the U.S. Army". Other
abbreviations end a sentence before a capital letter: "Dr. Smith".
"""

from functools import lru_cache
from itertools import pairwise

import regex

Span = tuple[int, int]
"""Start and end, as offsets of characters."""

_CLOSING = r"""["'”’»)\]]*"""
_ENDS = regex.compile(
    rf"(?<!\b\p{{Lu}})[.!?…]+{_CLOSING}(?=\s+[^\s\p{{Ll}}])|[。！？।]+{_CLOSING}|\n"
)


# The questions about a context come one after another.
@lru_cache(maxsize=1)
def sentences(text: str) -> tuple[Span, ...]:
    """Return the sentences, which together are the whole text."""
    ends = [match.end() for match in _ENDS.finditer(text)]
    edges = sorted({0, *ends, len(text)})
    return tuple(pairwise(edges))


def sentence_at(text: str, offset: int) -> Span:
    """Return the sentence of the character at `offset`."""
    return next(span for span in sentences(text) if span[0] <= offset < span[1])
