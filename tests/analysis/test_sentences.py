"""Sentences end where the rule says, and nothing is lost between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.analysis.sentences import sentence_at, sentences

TEXTS = st.text(alphabet="aB .!?\n\"'”。1", max_size=40)


@given(TEXTS)
def test_sentences_are_the_whole_text(text: str) -> None:
    spans = sentences(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)


@given(TEXTS.filter(bool), st.data())
def test_the_sentence_of_a_character_holds_it(text: str, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(text) - 1))
    start, end = sentence_at(text, offset)
    assert start <= offset < end
    assert (start, end) in sentences(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("He came. She left.", ["He came.", " She left."]),
        ("It cost 3.5 million. 20 died.", ["It cost 3.5 million.", " 20 died."]),
        ('He said "no." Then he left.', ['He said "no."', " Then he left."]),
        ("J. Smith joined the U.S. Army.", ["J. Smith joined the U.S. Army."]),
        ("the so-called no. one", ["the so-called no. one"]),
        ("Really?! Yes", ["Really?!", " Yes"]),
        ("Title\nText", ["Title\n", "Text"]),
        ("他来了。她走了。", ["他来了。", "她走了。"]),
        ("", []),
    ],
)
def test_sentences_of_a_text(text: str, parts: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == parts
