"""Comparison: figures of scripted answers against computation by hand and by brute force."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.answer.conftest import DATA, PASSAGES, RIGHT, Scripted, stopping_model

from loraqa.analysis.significance import interval, mcnemar
from loraqa.answer.compare import BEST, ONE, ORACLE, RISK, VOTE, Comparison, compare
from loraqa.answer.reader import Reader
from loraqa.answer.strategies import MAX_SAMPLES, parse_strategy
from loraqa.errors import InputError
from loraqa.model.runner import TreeRunner
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.squad import Answer, Passage, QADataset, Question, score_question


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def reader(segments: SegmentTokenizer, request: pytest.FixtureRequest) -> Reader:
    runner = TreeRunner(stopping_model(request.param, "float32"))
    return Reader(runner, segments, Template(), 250, 20, max_answer_tokens=12)


# Golds: Ruth Olen, king.
FIRST = replace(PASSAGES[0], questions=PASSAGES[0].questions[:1])
TWO = DATA.with_passages([FIRST, PASSAGES[1]])
SCRIPT = {
    "a1": ["Ruth Olen", "the moon", "ruth olen.", "Ruth"],
    "b1": ["queen", "king", "", "A queen"],
}


def scripted(reader: Reader, *, draws: bool = True) -> Comparison:
    """Compare a strategy that gives the answers of `SCRIPT` to the two questions."""
    (row,) = compare(reader, TWO, [Scripted(reader.tokenizer, SCRIPT, draws=draws)], samples=4)
    return row


def test_one_sample_scores_the_mean_of_all(reader: Reader) -> None:
    row = scripted(reader)
    assert (row.strategy, row.samples, row.questions, row.contexts) == ("scripted", 4, 2, 2)
    assert row.plain.name == ONE
    assert row.exact_match == pytest.approx(100 * (2 + 1) / 8)
    # Of the gold "Ruth Olen", "Ruth" has all precision and half the recall.
    assert row.f1 == pytest.approx(100 * (1 + 1 + 2 / 3 + 0 + 1) / 8)


def test_each_way_to_choose_scores_what_it_chooses(reader: Reader) -> None:
    """Votes: Ruth Olen twice, queen twice. By F1, "Ruth Olen" is also closest to the others."""
    f1 = {choice.name: choice.f1.mean for choice in scripted(reader).choices}
    assert f1 == {ONE: pytest.approx(45.8333), VOTE: 50, RISK: 50, ORACLE: 100}


def test_a_search_has_a_best_answer_and_no_votes(reader: Reader) -> None:
    row = scripted(reader, draws=False)
    assert [choice.name for choice in row.choices] == [BEST, RISK, ORACLE]
    assert row.exact_match == 50
    assert (row.distinct, row.by_samples, row.self_bleu) == (1, (), None)
    # Of the two best answers, one stands in its context.
    assert row.found == 0.5


def test_fewer_samples_are_the_first_ones(reader: Reader) -> None:
    """Of two samples that differ, the first comes first in a tie of equal probabilities."""
    of_samples = {each.samples: each for each in scripted(reader).by_samples}
    assert list(of_samples) == [1, 2, 4]
    assert [each.vote_f1 for each in of_samples.values()] == [50, 50, 50]
    assert [each.oracle_f1 for each in of_samples.values()] == [50, 100, 100]
    assert [each.distinct for each in of_samples.values()] == [1, 2, 3]
    for count, each in of_samples.items():
        script = {id: texts[:count] for id, texts in SCRIPT.items()}
        (fewer,) = compare(reader, TWO, [Scripted(reader.tokenizer, script)], samples=count)
        assert fewer.by_samples[-1] == each


def test_variety_equals_computation_by_hand(reader: Reader) -> None:
    row = scripted(reader)
    # Of the seven answers with words, four stand in their context.
    assert row.found == pytest.approx(4 / 7)
    assert row.distinct == 3
    half, quarter = 0.5 * math.log(2), 0.25 * math.log(4)
    assert row.entropy == pytest.approx(half + 2 * quarter)
    # Words: ruth olen moon ruth olen ruth, then queen king queen.
    assert row.distinct_1 == pytest.approx((3 + 2) / (6 + 3))
    assert row.distinct_2 == pytest.approx(1 / 2)
    tokens = [
        reader.tokenizer.encode([f" {text}"])[0].ids
        for texts in SCRIPT.values()
        for text in texts
        if text
    ]
    assert row.tokens == pytest.approx((sum(map(len, tokens)) + 8) / 2)
    assert row.seconds > 0


NAMES = ("span", "greedy", "temperature:3", "beam:3")


@pytest.fixture(scope="module")
def rows(reader: Reader) -> list[Comparison]:
    return compare(reader, DATA, [parse_strategy(name) for name in NAMES], samples=4, seed=3)


def f1_of(reader: Reader, name: str, samples: int = 1) -> np.ndarray:
    """Return F1 of each answer in percent, (questions, samples)."""
    read = reader.read(PASSAGES, parse_strategy(name), answers=samples, seed=3)
    pairs = zip(DATA.questions, read, strict=True)
    return np.array(
        [[100 * score_question(a.text, q, "1.1").f1 for a in each] for q, each in pairs]
    )


CONTEXTS = np.array([0, 0, 0, 1, 2, 2])


def test_strategies_are_compared_question_by_question_with_the_first(
    reader: Reader, rows: list[Comparison]
) -> None:
    reference = f1_of(reader, "span")[:, 0]
    greedy, sampled = f1_of(reader, "greedy")[:, 0], f1_of(reader, "temperature:3", 4)
    assert rows[0].plain.f1_change is None
    assert rows[0].plain.exact_match_p is None
    of_spans = rows[0].choice(RISK)
    assert of_spans is not None
    assert of_spans.f1_change == of_spans.f1_gain is not None
    assert of_spans.exact_match_p is not None
    for row, f1 in zip(rows[1:3], (greedy, sampled.mean(axis=1)), strict=True):
        change = row.plain.f1_change
        assert change is not None
        assert change.mean == pytest.approx((f1 - reference).mean())
        assert (change.low, change.high) == pytest.approx(interval(f1 - reference, CONTEXTS))
        assert row.f1 == pytest.approx(f1.mean())
        assert (row.plain.f1.low, row.plain.f1.high) == pytest.approx(interval(f1, CONTEXTS))
    right, also_right = reference == 100, greedy == 100
    assert rows[1].plain.exact_match_p == mcnemar(also_right, right)
    oracle = rows[2].choice(ORACLE)
    assert oracle is not None
    assert oracle.f1.mean == pytest.approx(sampled.max(axis=1).mean())
    assert (oracle.f1_gain, oracle.f1_change, oracle.exact_match_p) == (None, None, None)


def test_a_choice_gains_over_the_strategys_own_answers(rows: list[Comparison]) -> None:
    for row in rows:
        assert row.plain.f1_gain is None
        for choice in row.choices[1:]:
            if choice.f1_gain is not None:
                assert choice.f1_gain.mean == pytest.approx(choice.f1.mean - row.f1)


def test_every_strategy_has_the_choices_that_it_can_have(rows: list[Comparison]) -> None:
    assert [row.strategy for row in rows] == list(NAMES)
    assert [row.samples for row in rows] == [4, 1, 4, 3]
    assert [[choice.name for choice in row.choices] for row in rows] == [
        [BEST, RISK, ORACLE],
        [BEST],
        [ONE, VOTE, RISK, ORACLE],
        [BEST, RISK, ORACLE],
    ]
    for row in (rows[0], rows[1], rows[3]):
        assert (row.distinct, row.entropy) == (1, 0)
    assert rows[0].found == 1
    assert rows[2].distinct > 1


def test_comparisons_are_json(rows: list[Comparison]) -> None:
    for row in rows:
        value = json.loads(json.dumps(row.to_json(), allow_nan=False))
        assert value["f1"] == row.f1 == value["choices"][0]["f1"]["mean"]
        assert (value["exact_match"], value["oracle_f1"]) == (row.exact_match, row.oracle_f1)


def test_no_answer_by_the_threshold_stands_for_every_sample(reader: Reader) -> None:
    names, counts = ("span", "top-k:5", "beam:2", "greedy"), (4, 4, 2, 1)
    strategies = [parse_strategy(name) for name in names]
    silent = replace(reader, no_answer_threshold=-1.0)
    for row, count in zip(compare(silent, DATA, strategies, samples=4), counts, strict=True):
        assert row.f1 == 0
        assert (row.distinct, row.found) == (1, None)
        assert row.samples == count


def test_a_text_without_spans_is_compared_too(reader: Reader) -> None:
    short = replace(reader, max_answer_tokens=1, no_answer_threshold=0.0)
    (row,) = compare(short, DATA, [parse_strategy("span")], samples=2)
    assert (row.f1, row.samples) == (0, 1)


@pytest.mark.parametrize("samples", [0, MAX_SAMPLES + 1])
def test_the_number_of_samples_is_bounded(reader: Reader, samples: int) -> None:
    with pytest.raises(InputError, match=f"{samples} samples are out of range"):
        compare(reader, DATA, [parse_strategy("top-k")], samples=samples)


def test_progress_counts_the_answers_of_all_strategies_part_by_part(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of three questions: the first passage, then the others. Samples count each."""
    monkeypatch.setattr("loraqa.answer.compare._PART", 3)
    told: list[tuple[float, int, str]] = []
    strategies = [parse_strategy("greedy"), parse_strategy("top-k:3")]
    one_by_one = replace(reader, tokens_per_batch=1)
    parts = compare(
        one_by_one, DATA, strategies, samples=2, progress=lambda *news: told.append(news)
    )
    assert told == [
        *((done, 18, "greedy") for done in range(4)),
        *((done, 18, "top-k:3") for done in range(3, 10, 2)),
        *((done, 18, "greedy") for done in range(9, 13)),
        *((done, 18, "top-k:3") for done in range(12, 19, 2)),
    ]
    monkeypatch.undo()
    whole = compare(one_by_one, DATA, strategies, samples=2)
    assert [replace(row, seconds=0) for row in parts] == [replace(row, seconds=0) for row in whole]


def test_many_questions_are_answered_in_fifty_parts(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraqa.answer.compare._PART", 1)
    passages = [
        Passage(f"A king {n}.", (Question(str(n), "Who reigned?", (Answer("king", 2),)),))
        for n in range(120)
    ]
    read: list[int] = []

    class Noting(Reader):
        def read(self, passages, *args, **options):  # type: ignore[no-untyped-def]
            read.append(len(passages))
            return super().read(passages, *args, **options)

    noting = Noting(**{name: getattr(reader, name) for name in reader.__dataclass_fields__})
    (row,) = compare(noting, QADataset.from_passages(passages, "1.1"), [parse_strategy("greedy")])
    assert row.questions == sum(read) == 120
    assert read == [3] * 40


def test_the_share_in_context_is_none_if_all_answers_are_empty(reader: Reader) -> None:
    script = {id: [""] for id in RIGHT}
    (row,) = compare(reader, DATA, [Scripted(reader.tokenizer, script)], samples=1)
    assert row.found is None
    assert [choice.name for choice in row.choices] == [ONE]


def test_seconds_of_all_parts_add_up(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraqa.answer.compare._PART", 3)
    monkeypatch.setattr("loraqa.answer.compare.Stopwatch", lambda _: SimpleNamespace(seconds=2.0))
    rows = compare(reader, DATA, [parse_strategy("greedy"), parse_strategy("top-k:3")])
    assert [row.seconds for row in rows] == [4, 4]
