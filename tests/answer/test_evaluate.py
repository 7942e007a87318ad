"""Evaluation and comparison: scores of scripted answers against computation by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from tests.answer.conftest import DATA, PASSAGES, stopping_model

from loraqa.answer.compare import compare, entropy
from loraqa.answer.decode import Prompts, Written
from loraqa.answer.evaluate import evaluate, sample_questions
from loraqa.answer.reader import Reader
from loraqa.answer.span import SpanSearch
from loraqa.answer.strategies import MAX_SAMPLES, parse_strategy
from loraqa.errors import InputError
from loraqa.model.runner import TreeRunner
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.squad import Passage, QADataset, Question, score


@pytest.fixture(scope="module")
def reader(segments: SegmentTokenizer) -> Reader:
    runner = TreeRunner(stopping_model("gpt2", "float32"))
    return Reader(runner, segments, Template(), 250, 20, max_answer_tokens=12)


@dataclass(frozen=True)
class Scripted:
    """A strategy with a fixed list of answers to each question."""

    tokenizer: SegmentTokenizer
    answers: dict[str, Sequence[str]]
    draws: bool = True
    rows: int = 1
    name: str = "scripted"

    def write(self, prompts: Prompts) -> list[list[Written]]:
        return [
            [self._written(text) for text in self.answers[branch.question_id][: prompts.answers]]
            for _, branch, _ in prompts.rows()
        ]

    def _written(self, text: str) -> Written:
        tokens = self.tokenizer.encode([f" {text}"])[0].ids if text else []
        return Written((*tokens, self.tokenizer.eos), -1.0)


RIGHT = {
    "a1": ["Ruth Olen"],
    "a2": ["1203"],
    "a3": ["river Aune"],
    "b1": ["king"],
    "c1": ["Salt"],
    "c2": ["the hills"],
}


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


def test_comparison_equals_computation_by_hand(reader: Reader) -> None:
    """Golds: a1 Ruth Olen, b1 king; four samples each."""
    first = replace(PASSAGES[0], questions=PASSAGES[0].questions[:1])
    data = DATA.with_passages([first, PASSAGES[1]])
    script = {
        "a1": ["Ruth Olen", "ruth olen.", "Ruth", "the moon"],
        "b1": ["queen", "queen", "", "A queen"],
    }
    (row,) = compare(reader, data, [Scripted(reader.tokenizer, script)], samples=4)
    assert (row.strategy, row.samples) == ("scripted", 4)
    assert row.exact_match == pytest.approx(100 * 2 / 8)
    assert row.f1 == pytest.approx(100 * (1 + 1 + 2 / 3 + 0) / 8)
    assert row.oracle_f1 == pytest.approx(100 * (1 + 0) / 2)
    # Three of the seven non-empty answers are found in their context.
    assert row.found == pytest.approx(3 / 7)
    assert row.distinct == pytest.approx((3 + 2) / 2)
    first = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    second = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert row.entropy == pytest.approx((first + second) / 2)
    assert row.seconds > 0


def test_deterministic_strategies_have_one_answer(reader: Reader) -> None:
    names = ["greedy", "beam:2", "span", "temperature:3"]
    rows = compare(reader, DATA, [parse_strategy(name) for name in names], samples=3)
    assert [row.strategy for row in rows] == names
    assert [row.samples for row in rows] == [1, 1, 1, 3]
    for row in rows[:3]:
        assert (row.distinct, row.entropy, row.oracle_f1) == (1, 0, row.f1)
    assert rows[2].found == 1
    assert rows[3].distinct > 1


@pytest.mark.parametrize("samples", [0, MAX_SAMPLES + 1])
def test_the_number_of_samples_is_bounded(reader: Reader, samples: int) -> None:
    with pytest.raises(InputError, match=f"{samples} samples are out of range"):
        compare(reader, DATA, [parse_strategy("top-k")], samples=samples)


def test_progress_counts_the_prompts_of_all_strategies(reader: Reader) -> None:
    told: list[tuple[int, int, str]] = []
    strategies = [parse_strategy("greedy"), parse_strategy("top-k:3")]
    one_by_one = replace(reader, tokens_per_batch=1)
    compare(one_by_one, DATA, strategies, progress=lambda *news: told.append(news))
    greedy, top_k = "strategy 1 of 2: greedy", "strategy 2 of 2: top-k:3"
    assert told == [
        *((done, 12, greedy) for done in range(7)),
        *((done, 12, top_k) for done in range(6, 13)),
    ]


def test_the_share_in_context_is_none_if_all_answers_are_empty(reader: Reader) -> None:
    script = {id: [""] for id in RIGHT}
    (row,) = compare(reader, DATA, [Scripted(reader.tokenizer, script)], samples=1)
    assert row.found is None


def test_entropy() -> None:
    assert entropy(["a"]) == 0
    assert entropy(["a", "b"]) == pytest.approx(math.log(2))
