"""Evaluation: scores of scripted answers against computation by hand."""

from dataclasses import replace

import pytest
from tests.answer.conftest import DATA, PASSAGES, RIGHT, Scripted, stopping_model

from loraqa.answer.evaluate import evaluate, sample_questions
from loraqa.answer.reader import Reader
from loraqa.answer.span import SpanSearch
from loraqa.answer.strategies import parse_strategy
from loraqa.model.runner import TreeRunner
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.squad import Passage, QADataset, Question, score


@pytest.fixture(scope="module")
def reader(segments: SegmentTokenizer) -> Reader:
    runner = TreeRunner(stopping_model("gpt2", "float32"))
    return Reader(runner, segments, Template(), 250, 20, max_answer_tokens=12)


def test_right_answers_score_full_marks(reader: Reader) -> None:
    result = evaluate(reader, DATA, Scripted(reader.tokenizer, RIGHT))
    assert (result.scores.exact_match, result.scores.f1, result.scores.total) == (100, 100, 6)
    assert result.predictions == {id: texts[0] for id, texts in RIGHT.items()}
    places = [PASSAGES[0].context[answer.start : answer.end] for answer in result.answers[:3]]
    assert places == ["Ruth Olen", "1203", "river Aune"]


def test_scores_equal_the_official_scores_of_the_predictions(reader: Reader) -> None:
    script = RIGHT | {"a1": ["Ruth"], "b1": ["a queen"]}
    result = evaluate(reader, DATA, Scripted(reader.tokenizer, script))
    assert result.scores == score(result.predictions, DATA)
    assert result.scores.f1 == pytest.approx(100 * (4 + 2 / 3) / 6)
    assert result.to_json()["f1"] == result.scores.f1
    assert result.questions_per_second == pytest.approx(6 / result.seconds)


def test_without_a_strategy_answers_are_the_best_spans(reader: Reader) -> None:
    result = evaluate(reader, DATA)
    assert list(result.answers) == [answer for (answer,) in reader.read(PASSAGES, SpanSearch())]


def test_questions_without_an_answer_get_a_threshold(reader: Reader) -> None:
    unanswerable = Passage("Nothing here.", (Question("d1", "Who?"),))
    data = QADataset.from_passages([*PASSAGES, unanswerable], "2.0")
    script = RIGHT | {"d1": [""]}
    result = evaluate(reader, data, Scripted(reader.tokenizer, script))
    assert result.scores.exact_match == 100
    assert result.scores.no_answer is not None
    probabilities = {a.question_id: a.no_answer_probability for a in result.answers}
    assert result.scores == score(result.predictions, data, probabilities)
    nothing = score(dict.fromkeys(data.order, ""), data)
    assert result.to_json()["always_no_answer"] == pytest.approx(nothing.exact_match)
    assert "always_no_answer" not in evaluate(reader, DATA).to_json()


def test_the_seed_determines_the_answers(reader: Reader) -> None:
    strategy = parse_strategy("temperature:3")
    first = evaluate(reader, DATA, strategy, seed=1).predictions
    assert evaluate(reader, DATA, strategy, seed=1).predictions == first
    assert evaluate(reader, DATA, strategy, seed=2).predictions != first


@pytest.mark.parametrize("count", [1, 4, 6, 100])
def test_a_sample_has_whole_passages_and_so_many_questions(count: int) -> None:
    sample = sample_questions(DATA, count, seed=0)
    assert len(sample.questions) == min(count, 6)
    assert all(passage in PASSAGES for passage in sample.passages[:-1])
    assert sample == sample_questions(DATA, count, seed=0)


def test_a_sample_keeps_the_version_and_the_order_of_the_source() -> None:
    source = ("c2", "b1", "a3", "a2", "c1", "a1")
    data = replace(DATA, version="2.0", order=source)
    sample = sample_questions(data, 4, seed=0)
    drawn = {question.id for question in sample.questions}
    assert sample.version == "2.0"
    assert sample.order == tuple(id for id in source if id in drawn)


def test_seeds_draw_different_samples() -> None:
    samples = [sample_questions(DATA, 1, seed).passages[0].context for seed in range(10)]
    assert len(set(samples)) == 3
