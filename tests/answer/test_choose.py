"""Choosing among answers, against brute force over every answer."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.answer.conftest import PASSAGES, stopping_model

from loraqa.answer.answered import Answered
from loraqa.answer.choose import least_risk, vote
from loraqa.answer.reader import Reader
from loraqa.answer.strategies import parse_strategy
from loraqa.model.runner import TreeRunner
from loraqa.prompt.template import Template
from loraqa.squad import Answer, Question, normalize_answer, score_question, token_f1

TEXTS = ("Ruth", "Ruth Olen", "the Ruth Olen", "the old mill", "a mill", "Olen's mill", "1203", "")
# Powers of two, whose sums are exact.
PROBABILITIES = (0.5, 0.25, 0.125)


def answered(text: str, log_probability: float = -1.0) -> Answered:
    return Answered("q", text, log_probability, log_probability, None, None, 0.0)


answers = st.lists(
    st.builds(answered, st.sampled_from(TEXTS), st.sampled_from([-1.0, -2.0])),
    min_size=1,
    max_size=6,
)


@given(answers)
def test_no_answer_has_more_votes_than_the_chosen_one(given_answers: list[Answered]) -> None:
    texts = [normalize_answer(answer.text) for answer in given_answers]
    chosen = vote(given_answers)
    most = max(map(texts.count, texts))
    assert texts.count(normalize_answer(chosen.text)) == most
    tied = [a for a, text in zip(given_answers, texts, strict=True) if texts.count(text) == most]
    assert (chosen.text != "") == any(a.text for a in tied)
    with_words = [a for a in tied if a.text] or tied
    assert chosen.log_probability == max(a.log_probability for a in with_words)


def test_the_vote_is_what_candidates_put_first(segments: Any) -> None:
    reader = Reader(TreeRunner(stopping_model("gpt2", "float32")), segments, Template(), 250, 20)
    strategy = parse_strategy("temperature:1.5")
    asked = [question.text for question in PASSAGES[0].questions]
    candidates = reader.candidates(PASSAGES[0].context, asked, 20, strategy)
    numbered = tuple(Question(str(i), text) for i, text in enumerate(asked))
    read = reader.read([replace(PASSAGES[0], questions=numbered)], strategy, answers=20)
    for best, samples in zip(candidates, read, strict=True):
        assert replace(best[0], votes=1) == vote(samples)


def expected_f1(text: str, others: Sequence[Answered], weights: Sequence[float]) -> float:
    """The official F1 with each answer in turn as the gold; of two without words it is 1."""
    golds = [Question("q", "?", (Answer(other.text, 0),)) for other in others]
    scores = [score_question(text, gold, "2.0").f1 for gold in golds]
    return math.fsum(weight * score for weight, score in zip(weights, scores, strict=True))


@given(answers, st.data())
def test_no_answer_has_a_higher_expected_f1_than_the_chosen_one(
    given_answers: list[Answered], data: st.DataObject
) -> None:
    weight = st.sampled_from(PROBABILITIES)
    weights = data.draw(st.lists(weight, min_size=len(given_answers), max_size=len(given_answers)))
    chosen = least_risk(given_answers, weights)
    best = max(expected_f1(answer.text, given_answers, weights) for answer in given_answers)
    assert expected_f1(chosen.text, given_answers, weights) == pytest.approx(best)


def test_an_answer_between_the_others_has_the_least_risk() -> None:
    """No two answers agree, but one shares a word with each of the others."""
    texts = ["Ruth", "Olen", "Ruth Olen"]
    assert least_risk([answered(text) for text in texts], [1, 1, 1]).text == "Ruth Olen"
    assert least_risk([answered(text) for text in texts], [9, 1, 1]).text == "Ruth"


def test_ties_are_decided_by_weight_then_by_probability() -> None:
    apart = [answered("mill", -3.0), answered("town", -1.0), answered("river", -2.0)]
    assert least_risk(apart, [1, 1, 1]).text == "town"
    assert vote(apart).text == "town"
    assert least_risk([answered("", -1.0), answered("mill", -9.0)], [1, 1]).text == "mill"


def test_token_f1_is_symmetric_and_official() -> None:
    for first in TEXTS:
        for second in TEXTS:
            f1 = token_f1(first, second)
            assert f1 == token_f1(second, first)
            assert f1 == score_question(first, Question("q", "?", (Answer(second, 0),)), "2.0").f1
