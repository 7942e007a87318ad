"""Texts that match a question best come first."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.squad.ranking import Ranking, terms

TEXTS = [
    "The miller ground the corn of the village.",
    "Mills were built along the river, and a tower stood near.",
    "東京タワーは高い。",
    "Die Mühlenbesitzerin verkaufte Mehl.",
]


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("Who was grinding the corn?", 0),
        ("WHERE WERE MILLS BUILT?", 1),
        ("東京タワーの高さは?", 2),
        ("Wem gehörte die Mühle?", 3),
    ],
)
def test_other_forms_of_a_word_and_other_scripts_match(question: str, best: int) -> None:
    assert Ranking(TEXTS).order(question)[0] == best


def test_a_phrase_matches_better_than_its_words_apart() -> None:
    texts = ["A mill was old, and new water came.", "A new mill was there, and old water came."]
    assert Ranking(texts).order("new mill")[0] == 1


def test_terms_are_runs_of_four_characters_without_case_and_marks() -> None:
    assert terms("The Mill, 12!") == [
        *(" the", "the ", "he m", "e mi", " mil", "mill", "ill ", "ll 1", "l 12", " 12 "),
    ]
    assert terms("cafe\u0301") == terms("ca\u00adfé")
    assert terms("北京") == [" 北 京", "北 京 "]
    assert terms("?! ...") == []


def test_equal_texts_stay_in_their_order() -> None:
    assert Ranking(["a b", "a b", "c"]).order("b") == [0, 1, 2]
    assert Ranking(["a", "b"]).order("?") == [0, 1]
    assert Ranking(["?", "!"]).order("who") == [0, 1]


@given(
    texts=st.lists(st.text("ab c", max_size=20), min_size=1, max_size=6),
    question=st.text("ab c", max_size=20),
)
def test_scores_are_bm25_written_out(texts: list[str], question: str) -> None:
    """Robertson's formula with Lucene's idf, k1 = 1.2 and b = 0.75."""

    def runs(text: str) -> list[str]:
        line = " ".join(["", *text.split(), ""])
        return [line[start : start + 4] for start in range(len(line) - 3)]

    documents = [runs(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    expected = []
    for document in documents:
        score = 0.0
        for run in runs(question):
            holding = sum(run in other for other in documents)
            times = document.count(run)
            if times:
                rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                score += rarity * times / (times + 1.2 * (0.25 + 0.75 * len(document) / mean))
        expected.append(score)
    assert Ranking(texts).scores(question) == pytest.approx(expected, rel=1e-4, abs=1e-6)
