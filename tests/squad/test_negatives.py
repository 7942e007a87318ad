"""Questions on contexts without their answer, questions held out, and the ranking of texts."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.squad import Answer, Passage, QADataset, Question, normalize_answer
from loraqa.squad.held_out import hold_out
from loraqa.squad.negatives import with_negatives
from loraqa.squad.ranking import Ranking, terms

TOWNS = ["Aune", "Lier", "Moss", "Roa", "Voss", "Elda"]


def town(name: str, title: str) -> Passage:
    context = f"The town of {name} lies on a river. Its mill was built by Ruth {name}."
    question = Question(
        name, "Who built the mill?", (Answer(f"Ruth {name}", context.index("Ruth")),)
    )
    return Passage(context, (question,), title)


DATA = QADataset.from_passages(
    [
        town(name, "north" if n < 3 else "south" if n < 5 else "alone")
        for n, name in enumerate(TOWNS)
    ],
    "1.1",
)


@pytest.mark.parametrize("seed", range(3))
def test_negatives_are_asked_on_contexts_of_the_same_title_without_the_answer(seed: int) -> None:
    data = with_negatives(DATA, 0.999, seed)
    passages = {question.id: passage for passage in DATA.passages for question in passage.questions}
    negatives = [
        (passage, question)
        for passage in data.passages
        for question in passage.questions
        if not question.answerable
    ]
    # The last town is alone under its title, and no other town is.
    assert len(negatives) == 5
    for passage, negative in negatives:
        own = passages[negative.id.removesuffix(" elsewhere")]
        (asked,) = own.questions
        assert passage.context != own.context
        assert passage.title == own.title
        assert negative.text == asked.text
        assert normalize_answer(asked.golds[0]) not in normalize_answer(passage.context)
    ids = [question.id for passage in data.passages for question in passage.questions]
    assert Counter(data.order) == Counter(ids)
    assert len(set(ids)) == len(ids)


def test_a_question_whose_answer_is_everywhere_is_left_alone() -> None:
    passages = [
        Passage(f"The king lived in {name}.", (Question(name, "Who?", (Answer("king", 4),)),))
        for name in TOWNS
    ]
    data = QADataset.from_passages(passages, "1.1")
    assert with_negatives(data, 0.999, 0) == data


def test_an_answer_is_found_between_words_without_blanks() -> None:
    question = Question("q", "首都?", (Answer("北京", 0),))
    passages = [Passage("北京是首都。", (question,)), Passage("李明在北京大学读书。")]
    data = QADataset.from_passages(passages, "1.1")
    assert with_negatives(data, 0.999, 0) == data


def test_the_share_is_kept_and_the_seed_decides() -> None:
    many = QADataset.from_passages([town(f"N{n}", "") for n in range(200)], "1.1")
    chosen = {seed: with_negatives(many, 0.3, seed) for seed in (0, 1)}
    for data in chosen.values():
        assert 30 <= len(data.order) - 200 <= 90
    assert with_negatives(many, 0.3, 0) == chosen[0] != chosen[1]
    assert with_negatives(many, 0.0, 0) == many


def questions(count: int, each: int) -> QADataset:
    return QADataset.from_passages(
        [
            Passage(f"King {n}.", tuple(Question(f"{n}-{k}", "Who?") for k in range(each)))
            for n in range(count)
        ],
        "2.0",
    )


@given(st.integers(1, 60), st.integers(1, 30), st.integers(0, 300), st.integers(0, 3))
def test_whole_passages_are_held_out(passages: int, each: int, count: int, seed: int) -> None:
    data = questions(passages, each)
    kept, held_out = hold_out(data, count, seed)
    assert sorted(kept.order + held_out.order) == sorted(data.order)
    assert Counter(kept.passages) + Counter(held_out.passages) == Counter(data.passages)
    assert len(held_out.order) <= max(0.2 * len(data.order), 0)
    tenth = len(data.order) // 10
    if tenth < 50:
        assert not held_out.order
    else:
        assert len(held_out.order) >= min(count, tenth)
    assert hold_out(data, count, seed) == (kept, held_out)


def test_one_huge_passage_is_not_held_out() -> None:
    small = questions(60, 10)
    huge = Passage("Huge.", tuple(Question(f"h{n}", "Who?") for n in range(5000)))
    data = QADataset.from_passages([*small.passages, huge], "2.0")
    for seed in range(5):
        assert huge in hold_out(data, 200, seed)[0].passages


WORDS = st.sampled_from(["salt", "mill", "Ruth", "river", "the", "of", "北", "京"])


@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=12), min_size=1, max_size=8),
    st.lists(WORDS, max_size=5),
)
def test_the_order_is_that_of_bm25_written_out(texts: list[list[str]], asked: list[str]) -> None:
    """Robertson's formula with Lucene's idf, k1 = 1.2 and b = 0.75."""
    documents = [[word.casefold() for word in text] for text in texts]
    mean = sum(map(len, documents)) / len(documents)

    def score(document: list[str]) -> float:
        total = 0.0
        for term in (word.casefold() for word in asked):
            found = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - found + 0.5) / (found + 0.5))
            times = document.count(term)
            length = 0.25 + 0.75 * len(document) / mean
            total += idf * times / (times + 1.2 * length)
        return total

    order = Ranking([" ".join(text) for text in texts]).order(" ".join(asked))
    assert sorted(order) == list(range(len(texts)))
    scores = [score(documents[number]) for number in order]
    assert all(a >= b - 1e-5 for a, b in pairwise(scores))


def test_terms_are_words_in_any_script_without_case_and_marks() -> None:
    assert terms("The Mill, 1203!") == ["the", "mill", "1203"]
    assert terms("北京") == ["北", "京"]
    assert terms("?! ...") == []


def test_equal_texts_stay_in_their_order() -> None:
    assert Ranking(["a b", "a b", "c"]).order("b") == [0, 1, 2]
    assert Ranking(["a", "b"]).order("?") == [0, 1]
    assert Ranking(["?", "!"]).order("who") == [0, 1]
