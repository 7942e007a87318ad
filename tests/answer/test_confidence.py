"""Confidence: the fit, what it is computed from, and what is learned from held-out questions."""

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from tests.answer.conftest import DATA, LIMIT, PASSAGES, stopping_model

from loraqa.adapter.info import BetaCurve, Calibration
from loraqa.answer.answered import Answered
from loraqa.answer.calibrate import _calibration, _right, calibrate
from loraqa.answer.confidence import fit_beta, with_confidence
from loraqa.answer.evaluate import evaluate
from loraqa.answer.reader import Reader
from loraqa.answer.span import SpanSearch
from loraqa.model.runner import TreeRunner
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.squad import Passage, QADataset, Question, score
from loraqa.squad.negatives import with_negatives


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def answer(text: str = "salt", **values: Any) -> Answered:
    bounds = {"probability_at_least": 0.2, "probability_at_most": 0.6}
    return replace(Answered("q", text, -1.0, -1.0, None, None, 0.25), **(bounds | values))


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_beta_curve_that_scipy_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    p = random.beta(2.0, 1.0, 600)
    # Some are partly right.
    chance = sigmoid(0.7 * np.log(p) - 1.2 * np.log1p(-p) - 0.5)
    right = np.where(random.random(600) < 0.2, chance, random.random(600) < chance)

    def loss(parameters: Any) -> float:
        a, b, c = parameters
        z = a * np.log(p) - b * np.log1p(-p) + c
        # scikit-learn's default penalty on the slopes.
        costs = right * np.logaddexp(0, -z) + (1 - right) * np.logaddexp(0, z)
        return float(costs.sum() + (a**2 + b**2) / 2)

    expected = minimize(loss, [0.0, 0.0, 0.0]).x
    fitted = fit_beta(p.tolist(), right.tolist())
    assert fitted is not None
    assert min(expected[:2]) > 0
    assert [fitted.a, fitted.b, fitted.c] == pytest.approx(expected, abs=1e-2)
    assert (fitted.a, fitted.b, fitted.c) == pytest.approx((0.7, 1.2, -0.5), abs=0.7)


def test_a_curve_never_falls() -> None:
    """Both parts together would fall near 1, so that one of them is left out."""
    p = np.linspace(0.01, 0.99, 400)
    z = 2 * np.log(p) + np.log1p(-p)
    fitted = fit_beta(p.tolist(), sigmoid(z).tolist())
    assert fitted is not None
    assert (fitted.a > 0, fitted.b) == (True, 0)


def test_confidence_reaches_0_where_the_probability_does() -> None:
    """Answers with a low probability may be right by chance, and ln p have a slope below 0."""
    p = np.linspace(0.01, 0.99, 400)
    z = -2 * np.log1p(-p) - 0.2 * np.log(p)
    fitted = fit_beta(p.tolist(), sigmoid(z).tolist())
    assert fitted is not None
    assert fitted.a == fitted.b > 0
    calibration = Calibration(answer=fitted, questions=400)
    impossible = answer(probability_at_least=0.0, probability_at_most=1e-9)
    confidence = with_confidence(impossible, calibration).confidence
    assert confidence is not None
    assert confidence < 0.01


def test_confidence_that_would_fall_with_the_probability_is_none() -> None:
    assert fit_beta([0.1, 0.3, 0.7, 0.9], [1, 1, 0, 0]) is None


@pytest.mark.parametrize("right", [0, 1])
def test_nothing_is_fitted_if_all_are_right_or_wrong(right: int) -> None:
    assert fit_beta([0.5, 0.6, 0.1], [right] * 3) is None


def test_confidence_is_computed_from_the_share_or_from_the_odds_of_no_answer() -> None:
    calibration = Calibration(
        answer=BetaCurve(a=2.0, b=3.0, c=-1.0),
        no_answer=BetaCurve(a=0.5, b=0.5, c=1.0),
        questions=9,
    )
    assert answer().span_probability == pytest.approx(0.4)
    expected = sigmoid(2 * log(0.4) - 3 * log(0.6) - 1)
    assert with_confidence(answer(), calibration).confidence == pytest.approx(expected)
    x = log(0.25 / 0.75)
    confident = with_confidence(answer(""), calibration).confidence
    assert confident == pytest.approx(sigmoid(x / 2 + 1))


def test_without_a_search_or_a_fit_there_is_no_confidence() -> None:
    calibration = Calibration(answer=BetaCurve(a=2.0, b=2.0, c=-1.0), questions=9)
    unsearched = answer(probability_at_least=None, probability_at_most=None)
    assert with_confidence(unsearched, calibration) == unsearched
    assert with_confidence(answer(""), calibration) == answer("")


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certainty_has_a_finite_confidence(probability: float) -> None:
    calibration = Calibration(answer=BetaCurve(a=50.0, b=50.0, c=0.0), questions=9)
    certain = answer(probability_at_least=probability, probability_at_most=probability)
    assert with_confidence(certain, calibration).confidence == pytest.approx(probability, abs=1e-6)


def reader_of(segments: SegmentTokenizer, kind: str, **values: Any) -> Reader:
    runner = TreeRunner(stopping_model(kind, "float32"))
    options = {"max_answer_tokens": LIMIT} | values
    return Reader(runner, segments, Template(), 250, 20, **options)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_fit_is_that_of_the_best_spans(kind: str, segments: SegmentTokenizer) -> None:
    reader = reader_of(segments, kind)
    found = [best for (best,) in reader.read(PASSAGES, SpanSearch(slack=0.1))]
    # Some of the answers are declared right, so that there is something to fit.
    golds = {answer.question_id: answer.text for answer in found[::2]}
    passages = [
        Passage(
            passage.context,
            tuple(
                replace(question, golds=(golds.get(question.id, "another"),))
                for question in passage.questions
            ),
        )
        for passage in PASSAGES
    ]
    data = QADataset.from_passages(passages, "1.1")
    calibrated = calibrate(reader, data)
    official = score({answer.question_id: answer.text for answer in found}, data).by_question
    right = [official[answer.question_id].f1 for answer in found]
    assert 0 < sum(right) < len(right)
    expected = fit_beta([a.span_probability or 0 for a in found], right)
    assert calibrated.calibration is not None
    assert calibrated.calibration.answer == expected
    assert calibrated.calibration.no_answer is None
    assert calibrated.no_answer_threshold is None
    assert calibrated.calibration.questions == 6
    answers = evaluate(calibrated, data).answers
    assert all(answer.confidence is not None for answer in answers)


def test_answers_on_contexts_without_them_count_as_wrong(segments: SegmentTokenizer) -> None:
    reader, search = reader_of(segments, "gpt2"), SpanSearch(slack=0.1)
    found = [best for (best,) in reader.read(PASSAGES, search)]
    # The surer half of the answers is declared right, so that there is something to fit.
    surer = sorted(found, key=lambda answer: answer.span_probability or 0)[len(found) // 2 :]
    golds = {answer.question_id: answer.text for answer in surer}
    passages = [
        replace(p, questions=tuple(replace(q, golds=(golds.get(q.id, "x"),)) for q in p.questions))
        for p in PASSAGES
    ]
    data = QADataset.from_passages(passages, "1.1")
    both = with_negatives(data, 1.0, seed=0)
    assert len(both.order) > len(data.order) + 2
    answers = [best for (best,) in reader.read(both.passages, search)]
    expected = fit_beta(
        [answer.span_probability or 0 for answer in answers],
        [float(answer.question_id in golds) for answer in answers],
    )
    calibration = calibrate(reader, data, negatives=1.0).calibration
    assert expected is not None
    assert calibration is not None
    assert (calibration.answer, calibration.questions) == (expected, len(both.order))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_threshold_is_the_official_best_one(kind: str, segments: SegmentTokenizer) -> None:
    reader = reader_of(segments, kind, learned_no_answer=True, no_answer_threshold=0.5)
    found = [best for *_, best in reader.read(PASSAGES, SpanSearch())]
    probabilities = {answer.question_id: answer.no_answer_probability for answer in found}
    surest = min(probabilities, key=lambda id: probabilities[id])
    passages = [
        Passage(
            passage.context,
            tuple(
                replace(q, golds=(next(a.text for a in found if a.question_id == q.id),))
                if q.id == surest
                else Question(q.id, q.text)
                for q in passage.questions
            ),
        )
        for passage in PASSAGES
    ]
    data = QADataset.from_passages(passages, "2.0")
    calibrated = calibrate(reader, data)
    official = score({a.question_id: a.text for a in found}, data, probabilities).best
    assert official is not None
    assert calibrated.no_answer_threshold == pytest.approx(official.f1_threshold, rel=1e-5)
    # All questions but one have no answer, and that one is the surest. Its probability is the
    # threshold, and in batches of other questions it differs by rounding.
    above = replace(calibrated, no_answer_threshold=official.f1_threshold + 1e-5)
    assert evaluate(above, data).scores.f1 == official.f1 == 100


def test_right_answers_and_rightly_missing_ones_are_fitted_apart() -> None:
    random = np.random.default_rng(0)
    answers, questions = [], []
    for number in range(60):
        own, none = random.random(2)
        bounds = {"probability_at_least": own, "probability_at_most": own}
        found = answer(no_answer_probability=none, **bounds)
        answers.append(replace(found, question_id=str(number)))
        right, answerable = random.random() < own, random.random() > none
        golds = ("salt" if right else "bread",) if answerable else ()
        questions.append(Question(str(number), "What?", golds=golds))
    data = QADataset.from_passages([Passage("Salt.", tuple(questions))], "2.0")
    # An answer that was not searched says nothing.
    unsearched = replace(answer(probability_at_least=None), question_id="60")
    fitted = _calibration([*answers, unsearched], _with_question(data, "60"))
    right = [question.golds == ("salt",) for question in questions]
    none = [answer.no_answer_probability for answer in answers]
    assert fitted is not None
    assert fitted.answer == fit_beta([a.span_probability or 0 for a in answers], right)
    assert fitted.no_answer == fit_beta(none, [not q.golds for q in questions])
    assert fitted.no_answer is not None


@pytest.mark.parametrize(("golds", "expected"), [(1, 2 / 3), (2, 0.0)])
def test_an_answer_is_partly_right_only_where_there_is_one_annotator(
    golds: int, expected: float
) -> None:
    question = Question("q", "What?", golds=("white salt",) * golds)
    data = QADataset.from_passages([Passage("Salt.", (question,))], "1.1")
    scores = score({"q": "salt"}, data)
    assert _right(question, scores.by_question["q"]) == pytest.approx(expected)


def _with_question(data: QADataset, id: str) -> QADataset:
    (passage,) = data.passages
    more = replace(passage, questions=(*passage.questions, Question(id, "What?")))
    return QADataset.from_passages([more], data.version)


def test_the_threshold_decides_and_can_be_changed(segments: SegmentTokenizer) -> None:
    reader = reader_of(segments, "gpt2", learned_no_answer=True)
    questions = [question.text for question in PASSAGES[0].questions]
    for threshold, empty in ((0.0, True), (1.0, False)):
        strict = replace(reader, no_answer_threshold=threshold)
        for strategy in ("span", "greedy", "beam:2", "top-p:0.9"):
            for answers in strict.candidates(PASSAGES[0].context, questions, 3, strategy):
                assert (answers[0].text == "") == empty
                assert len(answers) <= 3
        assert all((a.text == "") == empty for a in evaluate(strict, DATA).answers)
