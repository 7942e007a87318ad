"""Graphemes and pieces of texts in any script."""

from itertools import accumulate

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from loraqa.squad.segmentation import (
    graphemes,
    inside_graphemes,
    inside_pieces,
    pieces,
    words,
)

# Letters, marks and signs of many scripts, joiners, emoji, blanks and control characters.
TEXTS = st.text(
    st.sampled_from(
        "ab1_ '.,\n\r\té\u0301\u200c\u200d\u200b"
        "👩🏽🇩🇪कलाि्षสวัเาແລາမြန်ាក្ស東京ター한한\u1112\u1161\u11ab"
    )
    | st.characters(codec="utf-8"),
    max_size=30,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Luther's 3.14, x²", ["Luther", "'", "s", "3", ".", "14", ",", "x²"]),
        ("Rene\u0301 Rene", ["Rene\u0301", "Rene"]),
        ("कला कल", ["कला", "कल"]),
        ("東京タワー。", ["東", "京", "タ", "ワ", "ー", "。"]),
        ("서울에서", ["서", "울", "에", "서"]),
        ("สวัสดี ชาว 2564", ["ส", "วั", "ส", "ดี", "ชา", "ว", "2564"]),
        ("ລາວ", ["ລາ", "ວ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ក្រុង", ["ក្រុ", "ង"]),
        ("می\u200cخواهم است", ["می\u200cخواهم", "است"]),
        ("👨\u200d👩\u200d👧 🇩🇪", ["👨\u200d👩\u200d👧", "🇩🇪"]),
        ("ວຽງ", ["ວຽ", "ງ"]),
        ("ꦗꦮ ᬩᬮᬶ", ["ꦗ", "ꦮ", "ᬩ", "ᬮᬶ"]),
        (
            "co\u00adoperate של\u200fום a\u2060b\u00ad",
            ["co\u00adoperate", "של\u200fום", "a\u2060b"],
        ),
        # A zero-width space is where words end.
        ("a\u200bb", ["a", "b"]),
        # A blank, a mark or a joiner alone is no piece.
        (" \u093e \u200b", []),
    ],
)
def test_pieces(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in pieces(text)] == expected


@given(TEXTS)
def test_no_grapheme_of_unicode_is_cut(text: str) -> None:
    edges = {0, *accumulate(map(len, regex.findall(r"\X", text)))}
    assert {offset for grapheme in graphemes(text) for offset in grapheme} <= edges
    assert "".join(text[start:end] for start, end in graphemes(text)) == text
    assert {offset for piece in pieces(text) for offset in piece} <= edges


@given(TEXTS)
def test_pieces_are_in_order_and_hold_every_letter_and_digit(text: str) -> None:
    places = pieces(text)
    flat = [offset for place in places for offset in place]
    assert flat == sorted(flat)
    held = {offset for start, end in places for offset in range(start, end)}
    # A letter after a lone mark, joiner or prefix is part of its grapheme.
    letters = {i for i, c in enumerate(text) if c.isalnum()}
    lone = {i for i in letters if regex.match(r"\s|\p{M}|\p{Cc}|\p{Cf}", text[i - 1 : i])}
    assert letters - held <= lone
    for start, end in places:
        assert not text[start].isspace()
        assert not regex.match(r"\p{M}", text[start])
        assert set(range(start + 1, end)) <= inside_pieces(text)


@given(TEXTS | st.text(st.characters(codec="ascii")))
def test_words_are_the_pieces_that_start_with_a_letter_or_a_digit(text: str) -> None:
    assert words(text) == [piece for piece in pieces(text) if text[piece[0]].isalnum()]


@given(TEXTS)
def test_what_is_inside_a_grapheme_is_inside_a_piece_or_between_pieces(text: str) -> None:
    assert inside_graphemes(text) <= inside_pieces(text)
    assert not inside_graphemes(text) & {start for start, _ in graphemes(text)}
