"""The place of an answer in its context."""

import re
from itertools import accumulate

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from loraqa.answer.locate import locate

TEXT = st.text(alphabet="ab A.,-\n_1é", max_size=12)

MARKED = st.text(alphabet="कलािे ae\u0301\u0308ช\u0e32เ한.", max_size=8)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


@pytest.mark.parametrize(
    ("text", "context", "found"),
    [
        ("1203", "Built in 1203.", "1203"),
        ("he", "The town that he saw", "he"),
        ("HE", "The town that he saw", "he"),
        ("ruth olen", "Built by Ruth\nOlen.", "Ruth\nOlen"),
        ("Ruth Olen.", "Built by Ruth Olen, of Aune", "Ruth Olen"),
        ("5", "It cost $5,000.", "5"),
        ("$5,000", "It cost $5,000.", "$5,000"),
        ("北京", "他住在北京市。", "北京"),
        ("Ol", "Built by Ruth Olen.", "Ol"),
        ("ol", "Built by Ruth Olen.", None),
        ("कल", "कला और कल", "कल"),
        ("कल", "कला", None),
        ("Rene", "Built by Rene\u0301.", None),
        ("Rene", "Built by Rene\u0301 or Rene.", "Rene"),
        ("René", "Built by Rene\u0301.", "Rene\u0301"),
        ("STRASSE", "Die Straße am Fluss", "Straße"),
        ("ชา", "ภาษาชาวโลก", "ชา"),
        ("ช", "ภาษาชาวโลก", None),
        ("า", "ภาษาชาวโลก", None),
        ("東京", "ここは東京タワーだ", "東京"),
        ("co", "They co\u00adoperate.", "co"),
        ("cooperate", "They co\u00adoperate.", "co\u00adoperate"),
        ("co\u00adoperate", "They cooperate.", "cooperate"),
        ("the moon", "Built by Ruth Olen.", None),
        ("!", "Built by Ruth Olen.", None),
        ("", "Built by Ruth Olen.", None),
    ],
)
def test_examples(text: str, context: str, found: str | None) -> None:
    place = locate(text, context, (0, len(context)))
    assert (context[slice(*place)] if place else None) == found


def test_the_first_place_in_the_window_is_preferred() -> None:
    context = "A king. A king. A king."
    assert locate("king", context, (0, 23)) == (2, 6)
    assert locate("king", context, (8, 23)) == (10, 14)
    assert locate("king", context, (22, 23)) == (2, 6)


def test_a_mark_does_not_end_a_word() -> None:
    context = "कला और कल"
    place = locate("कल", context, (0, len(context)))
    assert place == (7, 9)


@given(context=MARKED, text=MARKED)
def test_no_grapheme_is_cut(context: str, text: str) -> None:
    edges = {0, *accumulate(map(len, regex.findall(r"\X", context)))}
    place = locate(text, context, (0, len(context)))
    assert place is None or set(place) <= edges


def test_whole_words_are_preferred_to_parts_of_words() -> None:
    assert locate("art", "A party of art.", (0, 15)) == (11, 14)


def test_a_format_character_does_not_end_a_word() -> None:
    assert locate("co", "They co\u00adoperate, co.", (0, 20)) == (17, 19)


@given(context=TEXT, text=TEXT)
def test_the_text_found_has_the_same_words(context: str, text: str) -> None:
    place = locate(text, context, (0, len(context)))
    if place:
        found = context[slice(*place)]
        assert found == text or words(found) == words(text) != []
    else:
        assert not text or text not in context


@given(context=TEXT, data=st.data())
def test_a_piece_of_the_context_is_found_exactly(context: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(context)))
    end = data.draw(st.integers(start, len(context)))
    text = context[start:end]
    whole = not re.search(r"\w", context[start - 1 : start] + context[end : end + 1])
    place = locate(text, context, (0, len(context)))
    if text:
        assert place
    if text and whole:
        assert context[slice(*place)] == text
