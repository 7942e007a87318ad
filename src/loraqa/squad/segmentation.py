"""Graphemes and words of a text in any script, after Unicode's UAX #29.

A grapheme is what people see as one character: a letter with its marks, an emoji sequence. Vowel
signs belong to their consonant here, also where UAX #29 sets them apart, as in Thai and Burmese. A
piece is a word, a punctuation mark, or, in scripts that put no blanks between words, a grapheme.
Answers start and end with pieces.

UAX #29's own words are too long for that. They hold apostrophes, decimal points and underscores,
but people annotate "Luther" in "Luther's". And in scripts without blanks, words cannot be told
without a dictionary. As in UAX #29, soft hyphens and other invisible format characters do not end a
word.
"""

from collections.abc import Iterable
from functools import lru_cache

import regex

Span = tuple[int, int]
"""Start and end, as offsets of characters."""

# Scripts without blanks between words: Chinese and Japanese, and those of South East Asia, which
# UAX #14 calls "complex context" or, as Javanese and Balinese, "aksara". Korean has blanks, but
# appends particles to words.
_UNSPACED = (
    r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{scx=Yi}\p{scx=Hangul}"
    r"\p{scx=Tibetan}\p{Line_Break=Complex_Context}\p{Line_Break=Aksara}\p{Line_Break=Aksara_Start}"
)
# Vowels, and Lao's medial y, that Unicode counts as letters and that follow their consonant.
_AFTER = r"\p{InSC=Vowel_Dependent}\p{InSC=Consonant_Medial}"
# Vowels that are written before their consonant, in Thai, Lao and some others.
_BEFORE = r"\p{Logical_Order_Exception}"
_GRAPHEME = (
    rf"(?:{_BEFORE}(?=\p{{L}}))*\X"
    rf"(?:(?=[[\p{{M}}{_AFTER}]--{_BEFORE}])\X)*"
)
_IN_WORD = rf"(?=[[\p{{L}}\p{{N}}]--[{_UNSPACED}]]){_GRAPHEME}"
_FORMAT = r"\p{Word_Break=Format}"
# The groups are a word, and a grapheme that people see: no blank, no mark without a letter.
_PIECES = regex.compile(
    rf"(?V1)({_IN_WORD}(?:{_FORMAT}*{_IN_WORD})*)|(?=[^\s\p{{M}}\p{{Cc}}\p{{Cf}}])({_GRAPHEME})"
    rf"|{_GRAPHEME}"
)
_GRAPHEMES = regex.compile(rf"(?V1){_GRAPHEME}")
_ASCII_WORDS = regex.compile("[A-Za-z0-9]+")
_FORMATS = regex.compile(rf"{_FORMAT}+")


def pieces(text: str) -> list[Span]:
    """Return all words, punctuation marks and graphemes of unspaced scripts."""
    return [match.span() for match in _PIECES.finditer(text) if match.lastindex]


def words(text: str) -> list[Span]:
    """Return the pieces that start with a letter or a digit."""
    if text.isascii():
        # The same pieces, in a tenth of the time.
        return [match.span() for match in _ASCII_WORDS.finditer(text)]
    return [piece for piece in pieces(text) if text[piece[0]].isalnum()]


def without_format(text: str) -> str:
    """Return a text without soft hyphens and other invisible format characters."""
    return _FORMATS.sub("", text)


def graphemes(text: str) -> list[Span]:
    """Return all graphemes, blanks and control characters included."""
    return [match.span() for match in _GRAPHEMES.finditer(text)]


# The questions about a context come one after another.
@lru_cache(maxsize=1)
def inside_pieces(text: str) -> frozenset[int]:
    """Return the offsets inside a word or a grapheme."""
    return _inside(match.span() for match in _PIECES.finditer(text))


@lru_cache(maxsize=1)
def inside_graphemes(text: str) -> frozenset[int]:
    """Return the offsets inside a grapheme."""
    return _inside(graphemes(text))


def _inside(spans: Iterable[Span]) -> frozenset[int]:
    return frozenset(offset for start, end in spans for offset in range(start + 1, end))
