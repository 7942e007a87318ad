"""Questions on contexts without their answer, and questions held out."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.squad import Answer, Passage, QADataset, Question, normalize_answer
from loraqa.squad.held_out import hold_out
from loraqa.squad.negatives import with_negatives

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
