"""What dev data share with training data is counted."""

import json
from dataclasses import replace

import pytest

from loraqa.squad import Answer, Passage, QADataset, Question, Seen, overlap

MILL = Passage(
    "The mill was built by Ruth Olen in 1203.",
    (
        Question("a", "Who built the mill?", (Answer("Ruth Olen", 22),)),
        Question("b", "When was it built?", (Answer("1203", 35), Answer("in 1203", 32))),
        Question("c", "Who burnt it?"),
    ),
)
TOWER = Passage(
    "Ruth Olen also built the tower.",
    (
        Question("d", "Who built the mill?", (Answer("Ruth Olen", 0),)),
        Question("e", "When was it built?", (Answer("also", 10),)),
        Question("f", "Who burnt it?"),
    ),
)


def data(*passages: Passage) -> QADataset:
    return QADataset.from_passages(passages, "2.0")


def shared(train: QADataset, dev: QADataset) -> tuple[int, int, int, int]:
    seen = Seen.from_json(json.loads(json.dumps(Seen.in_data(train).to_json())))
    found = overlap(seen, dev)
    return found.questions, found.of_questions, found.contexts, found.of_contexts


def test_the_same_data_share_everything() -> None:
    both = data(MILL, TOWER)
    assert shared(both, both) == (6, 6, 2, 2)


def test_questions_are_the_same_with_an_answer_in_common() -> None:
    # "When was it built?" has another answer there, and "Who burnt it?" is about another text.
    assert shared(data(MILL), data(TOWER)) == (1, 3, 0, 1)


def test_case_and_blanks_make_no_difference() -> None:
    context = MILL.context.upper().replace(" ", "\n ")
    other = replace(MILL, context=context, questions=MILL.questions[2:])
    assert shared(data(MILL), data(other)) == (1, 1, 1, 1)


def test_one_answer_in_common_is_enough() -> None:
    (question,) = MILL.questions[1:2]
    one = replace(MILL, questions=(replace(question, answers=question.answers[1:]),))
    assert shared(data(MILL), data(one))[0] == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_other_data_share_nothing(swapped: bool) -> None:
    other = Passage("A hill.", (Question("x", "What?", (Answer("hill", 2),)),))
    pair = (data(MILL), data(other))
    found = overlap(Seen.in_data(pair[swapped]), pair[not swapped])
    assert not found
