"""Scores against published figures, a second implementation of the rules, and properties."""

import json
import logging
import re
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraqa.errors import InputError
from loraqa.squad import (
    Answer,
    Passage,
    QADataset,
    Question,
    Version,
    normalize_answer,
    read_passages,
    read_predictions,
    score,
    score_question,
)

# What the official scripts print for these files.
PUBLISHED = {
    ("squad1-bert-ensemble", "squad1-dev"): {
        "exact_match": 86.59544446684136,
        "f1": 91.9281436855697,
        "total": 4961,
        "missing": 0,
        "unknown": 0,
    },
    ("squad1-logistic-regression", "squad1-dev"): {
        "exact_match": 40.93932674863939,
        "f1": 50.888084706234544,
        "total": 4961,
        "missing": 7,
        "unknown": 0,
    },
    ("squad2-bert-single", "squad2-dev"): {
        "exact_match": 78.75776397515529,
        "f1": 81.53826083951756,
        "total": 6440,
        "HasAns_exact": 74.39064023399415,
        "HasAns_f1": 80.21007468524311,
        "HasAns_total": 3077,
        "NoAns_exact": 82.75349390425215,
        "NoAns_f1": 82.75349390425215,
        "NoAns_total": 3363,
        "missing": 0,
        "unknown": 0,
    },
}


@pytest.mark.parametrize(("predictions", "data"), PUBLISHED)
def test_published_predictions_get_their_published_scores(
    shared: Path, predictions: str, data: str
) -> None:
    read = read_passages(shared / "data" / f"{data}.json")
    texts = read_predictions(shared / "data" / "predictions" / f"{predictions}.json")
    scores = score(texts, read)
    assert scores.to_json() == PUBLISHED[predictions, data]


def on_one_context(*questions: Question, version: Version = "1.1") -> QADataset:
    return QADataset.from_passages([Passage("c", questions)], version)


def question(*golds: str, id: str = "q") -> Question:
    return Question(id, "?", tuple(Answer(gold, 0) for gold in golds))


@pytest.mark.parametrize(
    ("prediction", "golds", "version", "exact", "f1"),
    [
        ("The Denver, Broncos!", ["denver broncos"], "1.1", 1, 1),
        ("Denver", ["Denver Broncos", "Broncos"], "1.1", 0, 2 / 3),
        ("a b b c", ["b b d"], "1.1", 0, 2 / 3),
        ("north", ["south", "the North"], "2.0", 1, 1),
        ("the", ["an"], "1.1", 1, 0),
        ("the", ["an"], "2.0", 1, 1),
        ("x", ["the", "x y"], "2.0", 0, 2 / 3),
        ("", [], "2.0", 1, 1),
        ("...", [], "2.0", 1, 1),
        ("x", [], "2.0", 0, 0),
        ("", ["x"], "2.0", 0, 0),
    ],
)
def test_one_prediction_has_the_scores_computed_by_hand(
    prediction: str, golds: list[str], version: Version, exact: float, f1: float
) -> None:
    scored = score_question(prediction, question(*golds), version)
    assert (scored.exact_match, scored.f1) == (exact, pytest.approx(f1, abs=1e-15))


texts = st.text(st.sampled_from("ab theAN.,-é "), max_size=12)


@given(
    st.lists(texts, min_size=1, max_size=3).filter(lambda golds: all(map(normalize_answer, golds)))
)
def test_a_gold_answer_scores_one(golds: list[str]) -> None:
    for gold in golds:
        for version in ("1.1", "2.0"):
            scored = score_question(gold, question(*golds), version)
            assert (scored.exact_match, scored.f1) == (1, 1)


@given(texts, texts)
def test_case_articles_and_punctuation_change_nothing(prediction: str, gold: str) -> None:
    changed = f" THE {prediction.swapcase()} an !"
    for version in ("1.1", "2.0"):
        assert score_question(changed, question(gold), version) == score_question(
            prediction, question(gold), version
        )


@given(texts, texts)
def test_f1_is_symmetric_and_one_for_an_exact_match(a: str, b: str) -> None:
    one, other = score_question(a, question(b), "1.1"), score_question(b, question(a), "1.1")
    assert one.f1 == pytest.approx(other.f1, abs=1e-15)
    assert 0 <= one.f1 <= 1
    if one.exact_match and normalize_answer(a):
        assert one.f1 == 1


@given(texts)
def test_normalization_is_idempotent(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once
    assert not set(once) & set(string.punctuation)


# A second, slow implementation of the rules of evaluate-v2.0.


def official_words(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def official_score(prediction: str, golds: list[str]) -> tuple[int, float]:
    golds = [gold for gold in golds if official_words(gold)] or [""]
    exact = max(int(official_words(prediction) == official_words(gold)) for gold in golds)
    overlaps: list[float] = []
    for gold in golds:
        left, right = Counter(official_words(prediction)), Counter(official_words(gold))
        shared = sum(min(left[word], right[word]) for word in left)
        if not left or not right:
            overlaps.append(int(left == right))
        elif not shared:
            overlaps.append(0)
        else:
            precision, recall = shared / left.total(), shared / right.total()
            overlaps.append((2 * precision * recall) / (precision + recall))
    return exact, max(overlaps)


def official_best(
    scores: dict[str, float],
    questions: list[Question],
    texts: dict[str, str],
    none: dict[str, float],
) -> tuple[float, float]:
    """Try every threshold, with the questions sorted by no-answer probability."""
    by_id = {question.id: question for question in questions}
    ids = sorted(none, key=lambda id: none[id])
    cuts = []
    for cut in range(len(ids) + 1):
        total = sum(not question.answers for question in questions) + 0.0
        for id in ids[:cut]:
            total += scores[id] if by_id[id].answers else -bool(texts[id])
        cuts.append(total)
    best = cuts.index(max(cuts))
    return 100 * cuts[best] / len(ids), none[ids[best - 1]] if best else 0.0


@st.composite
def scored_data(draw: st.DrawFn) -> tuple[list[Question], dict[str, str], dict[str, float]]:
    answers = st.sampled_from(["", "the", "b", "b c", "b c d", "c c b", "B, c!"])
    golds = draw(st.lists(st.lists(answers, max_size=2), min_size=1, max_size=8))
    questions = [question(*texts, id=f"q{i}") for i, texts in enumerate(golds)]
    ids = draw(st.permutations([question.id for question in questions]))
    none = st.sampled_from([0.0, 0.1, 0.1, 0.5, 1.0, 1.2, 3.0])
    return questions, {id: draw(answers) for id in ids}, {id: draw(none) for id in ids}


@settings(max_examples=300)
@given(scored_data())
def test_v2_scores_follow_the_official_rules(data: Any) -> None:
    questions, texts, none = data
    golds = {question.id: [answer.text for answer in question.answers] for question in questions}
    raw = {id: official_score(texts[id], golds[id]) for id in golds}
    final = {id: (float(not golds[id]),) * 2 if none[id] > 1.0 else raw[id] for id in golds}
    scores = score(texts, on_one_context(*questions, version="2.0"), none)
    assert {id: (one.exact_match, one.f1) for id, one in scores.by_question.items()} == final

    expected: dict[str, Any] = {"missing": 0, "unknown": 0}
    kinds = {
        "": list(golds),
        "HasAns_": [id for id in golds if golds[id]],
        "NoAns_": [id for id in golds if not golds[id]],
    }
    for prefix, ids in kinds.items():
        if ids:
            name = f"{prefix}exact" if prefix else "exact_match"
            expected[name] = 100 * sum(final[id][0] for id in ids) / len(ids)
            expected[f"{prefix}f1"] = 100 * sum(final[id][1] for id in ids) / len(ids)
            expected[f"{prefix}total"] = len(ids)
    for index, name in enumerate(("best_exact", "best_f1")):
        one = {id: raw[id][index] for id in raw}
        expected[name], expected[f"{name}_thresh"] = official_best(one, questions, texts, none)
    assert scores.to_json() == pytest.approx(expected, abs=1e-9)


def test_a_missing_prediction_scores_zero_and_is_listed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = on_one_context(*(question("b", id=id) for id in ("x", "y", "z")))
    with caplog.at_level(logging.WARNING, "loraqa"):
        scores = score({"x": "b", "w": "b"}, data)
    assert (scores.exact_match, scores.total) == (100 / 3, 3)
    assert (scores.missing, scores.unknown) == (("y", "z"), ("w",))
    assert "2 (y, z)" in caplog.text
    assert "1 (w)" in caplog.text


def test_of_many_missing_predictions_twenty_are_named(caplog: pytest.LogCaptureFixture) -> None:
    data = on_one_context(*(question("b", id=f"q{i}") for i in range(25)))
    with caplog.at_level(logging.WARNING, "loraqa"):
        score({}, data)
    assert "q19 and 5 more" in caplog.text
    assert "q20" not in caplog.text


def test_a_missing_prediction_is_wrong_even_where_there_is_no_answer() -> None:
    data = on_one_context(question(id="x"), question("b", id="y"), version="2.0")
    figures = score({"y": "b"}, data, {"x": 0.2, "y": 0.4}).to_json()
    assert figures["exact_match"] == 50
    assert figures["NoAns_exact"] == 0
    assert (figures["best_exact"], figures["best_exact_thresh"]) == (50, 0)


def test_a_kind_without_questions_has_no_figures() -> None:
    figures = score({"q": ""}, on_one_context(question(), version="2.0")).to_json()
    assert figures["NoAns_exact"] == 100
    assert "HasAns_exact" not in figures
    assert "best_exact" not in figures


def test_sums_follow_the_order_of_the_file() -> None:
    """Floating-point sums depend on their order, and the last digit must be the official one."""
    predictions = {"x": "b c", "y": "b c d", "z": "b c d e"}
    x, y, z = (question("b", id=id) for id in predictions)
    together = QADataset.from_passages([Passage("1", (x, z)), Passage("2", (y,))], "1.1")
    as_read = replace(together, order=("x", "y", "z"))
    f1 = {id: one.f1 for id, one in score(predictions, together).by_question.items()}
    as_in_the_file = 100 * (f1["x"] + f1["y"] + f1["z"]) / 3
    as_passages = 100 * (f1["x"] + f1["z"] + f1["y"]) / 3
    assert as_in_the_file != as_passages
    assert score(predictions, as_read).f1 == as_in_the_file
    assert score(predictions, together).f1 == as_passages


def test_what_cannot_be_scored_is_refused() -> None:
    unanswerable = on_one_context(question(id="x"))
    with pytest.raises(InputError, match="no questions"):
        score({}, QADataset.from_passages([], "1.1"))
    with pytest.raises(InputError, match="'x' has no answer"):
        score({"x": ""}, unanswerable)
    with pytest.raises(InputError, match="need SQuAD v2.0 data"):
        score({}, on_one_context(question("b")), {"q": 0.1})
    with pytest.raises(InputError, match="without a no-answer probability: 1 .*'x'"):
        score({"x": ""}, replace(unanswerable, version="2.0"), {"y": 0.1})


def test_the_figures_are_json() -> None:
    scores = score({"q": ""}, on_one_context(question(), version="2.0"), {"q": 0.1})
    assert json.loads(json.dumps(scores.to_json())) == scores.to_json()
