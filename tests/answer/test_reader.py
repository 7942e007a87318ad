"""The reader: order of answers, batches, windows, places, and refused texts."""

import logging
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.answer.conftest import LIMIT, PASSAGES, generate, prompts_of, stopping_model

from loraqa.answer import span
from loraqa.answer.answered import Answered
from loraqa.answer.decode import Greedy, Prompts, Rules, Written
from loraqa.answer.reader import Reader, without_capitals
from loraqa.errors import InputError, LoraqaError
from loraqa.model.runner import PaddedRunner, TreeRunner
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.squad import Passage, Question

LONG = " ".join(f"House {n} was built by mason {n}." for n in range(12))
LONG_PASSAGE = Passage(LONG, (Question("q", "Who?"),))


def reader_of(segments: SegmentTokenizer, path: Any = TreeRunner, **options: Any) -> Reader:
    values = {"max_length": 250, "stride": 20, "max_answer_tokens": LIMIT} | options
    return Reader(path(stopping_model("gpt2", "float32")), segments, Template(), **values)


def ids(answers: list[list[Answered]]) -> list[str]:
    return [first.question_id for first, *_ in answers]


@pytest.mark.parametrize("tokens_per_batch", [1, 300, 10_000])
@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
def test_answers_have_the_order_of_the_questions_for_every_batch_size(
    tokens_per_batch: int, path: Any, segments: SegmentTokenizer
) -> None:
    together = reader_of(segments).read(PASSAGES, Greedy())
    reader = reader_of(segments, path, tokens_per_batch=tokens_per_batch)
    answers = reader.read(PASSAGES, Greedy())
    assert ids(answers) == [question.id for passage in PASSAGES for question in passage.questions]
    for (ours,), (expected,) in zip(answers, together, strict=True):
        assert (ours.text, ours.start, ours.end) == (expected.text, expected.start, expected.end)
        assert ours.log_probability == pytest.approx(expected.log_probability, rel=1e-4, abs=1e-4)


def test_answers_and_probabilities_equal_transformers(
    segments: SegmentTokenizer, trees: Any, rules: Rules
) -> None:
    prompts = prompts_of(TreeRunner(stopping_model("gpt2")), trees, rules)
    expected = generate(stopping_model("gpt2"), prompts, begin_suppress_tokens=[0])
    first = prompts.logits.softmax(dim=-1)[:, 0].tolist()
    answers = reader_of(segments).read(PASSAGES, Greedy())
    for (answer,), (tokens, _), none in zip(answers, expected, first, strict=True):
        kept = [token for token in tokens if token not in rules.stops]
        assert answer.text == segments.decode(kept)
        mean = answer.log_probability / len(tokens)
        assert answer.mean_log_probability == pytest.approx(mean)
        against_answer = none / (none + exp(answer.log_probability))
        assert answer.no_answer_probability == pytest.approx(against_answer, rel=1e-3)


def test_one_question_is_not_taken_for_a_list(segments: SegmentTokenizer) -> None:
    with pytest.raises(
        InputError, match=r"^The questions are one text; give a list, \['Who\?'\]\.$"
    ):
        reader_of(segments).answer("Ruth built the mill.", "Who?")


def test_progress_counts_questions(segments: SegmentTokenizer) -> None:
    calls: list[tuple[float, int]] = []
    reader = reader_of(segments, tokens_per_batch=300)
    reader.read(PASSAGES, Greedy(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 6), (3, 6), (6, 6)]


def test_a_question_is_answered_bit_by_bit_in_the_windows_of_its_context(
    segments: SegmentTokenizer,
) -> None:
    reader = reader_of(segments, tokens_per_batch=1, most_windows=None)
    long = " ".join(f"Nothing happened in year {n}." for n in range(60))
    questions = (Question("a", "Who built the mill?"), Question("b", "When?"))
    passages = [Passage(long, questions), Passage("A king.", (Question("c", "Who?"),))]
    windows = reader.count_prompts(passages[:1])
    assert windows > 4
    calls: list[tuple[float, int]] = []
    reader.read(passages, Greedy(), progress=lambda done, total: calls.append((done, total)))
    done = [each for each, _ in calls]
    assert {total for _, total in calls} == {3}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 3)
    assert sum(0 < each < 1 for each in done) > 1


def test_progress_moves_within_a_batch(
    segments: SegmentTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span, "_INTERVAL", -1.0)
    told: list[float] = []
    reader_of(segments).read(
        PASSAGES,
        span.SpanSearch(at_once=1),
        answers=20,
        progress=lambda done, _, __="": told.append(done),
    )
    assert told == sorted(told)
    assert (told[0], told[-1], told.count(0)) == (0, 6, 1)
    assert {*told} - {0, 6}


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("strategy", ["span", "greedy", "beam:2", "top-p:0.9"])
def test_logits_that_are_not_finite_give_no_answer(
    strategy: str, number: float, segments: SegmentTokenizer
) -> None:
    reader = reader_of(segments)
    with torch.no_grad():
        reader.runner.model.lm_head.weight[7] = number
    with pytest.raises(LoraqaError, match=r"^The model gives logits that are not finite .*\.$"):
        reader.answer("The mill was built by Ruth Olen.", ["Who?"], strategy)


def test_out_of_memory_raises_a_clear_error(
    segments: SegmentTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TreeRunner, "prefill", out_of_memory)
    with pytest.raises(LoraqaError, match="while answering .* set tokens_per_batch .* lower"):
        reader_of(segments).read(PASSAGES, Greedy())


@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
def test_batches_respect_tokens_per_batch(
    path: Any, segments: SegmentTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(segments, path, tokens_per_batch=400)
    sizes: list[tuple[int, int]] = []
    prefill = path.prefill

    def watched(runner: Any, trees: list[Tree]) -> Any:
        questions = sum(len(tree.branches) for tree in trees)
        sizes.append((questions, runner.size(trees) + questions * LIMIT))
        return prefill(runner, trees)

    monkeypatch.setattr(path, "prefill", watched)
    reader.read([*PASSAGES, LONG_PASSAGE], Greedy())
    assert any(questions > 1 for questions, _ in sizes)
    assert all(size <= 400 for questions, size in sizes if questions > 1)


@dataclass(frozen=True)
class Scripted:
    """A strategy with fixed answers, chosen by the part of `LONG` where the window starts."""

    tokenizer: SegmentTokenizer
    answers: list[tuple[str, float]]
    name: str = "scripted"
    draws: bool = False
    rows: int = 1

    def write(self, prompts: Prompts) -> list[list[Written]]:
        written = []
        for tree, _, _ in prompts.rows():
            text, log_probability = self.answers[tree.window[0] * len(self.answers) // len(LONG)]
            tokens = self.tokenizer.encode([f" {text}"])[0].ids if text else []
            written.append([Written((*tokens, self.tokenizer.eos), log_probability)])
        return written


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([("mason 1", -3.0), ("mason 5", -1.0), ("mason 9", -2.0)], "mason 5"),
        ([("", -0.1), ("mason 5", -9.0), ("", -0.1)], "mason 5"),
        ([("", -0.1), ("", -0.2), ("", -0.3)], ""),
    ],
)
def test_the_most_probable_answer_of_all_windows_is_taken(
    script: list[tuple[str, float]], expected: str, segments: SegmentTokenizer
) -> None:
    reader = reader_of(segments, max_length=140)
    ((answer,),) = reader.read([LONG_PASSAGE], Scripted(segments, script))
    assert answer.text == expected
    start = LONG.index(expected) if expected else None
    assert answer.start == start


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=400).filter(
        str.strip
    ),
    strategy=st.sampled_from(["span", "greedy", "top-k:3"]),
)
def test_places_match_the_answers(context: str, strategy: str, segments: SegmentTokenizer) -> None:
    reader = reader_of(segments, max_length=160)
    for answer in reader.answer(context, ["Who?", "When was it?"], strategy):
        if strategy == "span" and answer.text:
            assert context[answer.start : answer.end] == answer.text
        elif answer.start is None:
            assert not answer.text or answer.text not in context
        else:
            assert context[answer.start : answer.end].strip()


@pytest.mark.parametrize(
    ("question", "read"),
    [
        ("WHO BUILT THE MILL IN 1203?", "who built the mill in 1203?"),
        ("ΠΟΙΟΣ ΕΧΤΙΣΕ;", "ποιος εχτισε;"),
        ("Who built the USA?", "Who built the USA?"),
        ("NATO?", "NATO?"),
        ("谁 建的?", "谁 建的?"),
        ("谁 是 CEO?", "谁 是 CEO?"),
        ("NATO ?", "NATO ?"),
        ("1203 ?", "1203 ?"),
    ],
)
def test_questions_in_capitals_are_read_in_small_letters(
    question: str, read: str, segments: SegmentTokenizer
) -> None:
    reader, context = reader_of(segments), PASSAGES[0].context
    assert without_capitals(question) == read
    assert reader.answer(context, [question]) == reader.answer(context, [read])
    # Scores are those of the questions as they are.
    asked, small = (Passage(context, (Question("0", text),)) for text in (question, read))
    (as_it_is,), (lowered,) = (reader.read([each], Greedy()) for each in (asked, small))
    assert (as_it_is == lowered) == (question == read)


def test_windows_are_logged_once_for_the_same_contexts(
    segments: SegmentTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    reader = reader_of(segments, max_length=140)
    with caplog.at_level(logging.INFO, logger="loraqa"):
        other = replace(LONG_PASSAGE, context=f"{LONG_PASSAGE.context} A king.")
        for passages in ([LONG_PASSAGE], [LONG_PASSAGE, PASSAGES[1]], [other, PASSAGES[1]]):
            reader.read(passages, Greedy())
    why = "too long for 140 tokens, the most that the model takes, and read in windows."
    assert caplog.messages == [f"1 of 1 context is {why}", f"1 of 2 contexts is {why}"]


def test_too_large_max_answer_tokens_are_named(segments: SegmentTokenizer) -> None:
    reader = reader_of(segments, max_length=140, max_answer_tokens=110)
    with pytest.raises(
        InputError, match="^Answers of up to 110 of 140 tokens .*; lower max_answer_tokens.$"
    ):
        reader.read([LONG_PASSAGE], Greedy())


@pytest.mark.parametrize(
    ("context", "question", "reason"),
    [
        (" ", "Who?", "context is blank"),
        ("A king.", "\n", "question is blank"),
        ("A \ud800king.", "Who?", "lone surrogate"),
        ("A king.", "W\udfffho?", "lone surrogate"),
        ("A king. " * 40, "Who? " * 60, "^The question 'Who.* no room .*; shorten the question.$"),
    ],
)
def test_invalid_texts_are_refused(
    context: str, question: str, reason: str, segments: SegmentTokenizer
) -> None:
    with pytest.raises(InputError, match=reason):
        reader_of(segments).answer(context, [question])


def test_an_unknown_strategy_is_refused(segments: SegmentTokenizer) -> None:
    with pytest.raises(InputError, match="no strategy 'best'"):
        reader_of(segments).answer("A king.", ["Who?"], "best")


def test_no_questions_give_no_answers(segments: SegmentTokenizer) -> None:
    assert reader_of(segments).answer("A king.", []) == []


@dataclass(frozen=True)
class ManyAnswers(Scripted):
    """A strategy with fixed answers to each prompt; those to a window are a list."""

    script: tuple[list[tuple[str, float]], ...] = ()

    def write(self, prompts: Prompts) -> list[list[Written]]:
        found = []
        for tree, _, _ in prompts.rows():
            answers = self.script[tree.window[0] * len(self.script) // len(LONG)]
            tokens = [self.tokenizer.encode([f" {t}"])[0].ids if t else [] for t, _ in answers]
            found.append(
                [
                    Written((*ids, self.tokenizer.eos), score)
                    for ids, (_, score) in zip(tokens, answers, strict=True)
                ]
            )
        return found


def candidates(
    segments: SegmentTokenizer, script: tuple[list[tuple[str, float]], ...], draws: bool, count: int
) -> list[tuple[str, int]]:
    strategy = ManyAnswers(segments, [], draws=draws, script=script)
    reader = reader_of(segments, max_length=140)
    context = LONG if len(script) > 1 else "A king."
    (answers,) = reader.candidates(context, ["Who?"], count, strategy)
    return [(answer.text, answer.votes) for answer in answers]


def test_samples_that_read_the_same_are_one_answer_and_the_most_frequent_is_first(
    segments: SegmentTokenizer,
) -> None:
    script = ([("mason 9", -0.5), ("the mason 5", -3.0), ("", -0.1), ("Mason 5.", -2.0)],)
    expected = [("Mason 5.", 2), ("mason 9", 1), ("", 1)]
    assert candidates(segments, script, draws=True, count=4) == expected


def test_beams_that_read_the_same_are_one_answer_and_the_most_probable_is_first(
    segments: SegmentTokenizer,
) -> None:
    script = ([("mason 9", -0.5), ("Mason 5.", -2.0), ("the mason 5", -3.0)],)
    expected = [("mason 9", 1), ("Mason 5.", 2)]
    assert candidates(segments, script, draws=False, count=3) == expected


def test_the_best_answers_come_from_all_windows(segments: SegmentTokenizer) -> None:
    script = (
        [("mason 1", -3.0), ("", -4.0)],
        [("", -0.1), ("mason 5", -1.0)],
        [("mason 9", -2.0), ("The mason 5", -2.5)],
    )
    found = [text for text, _ in candidates(segments, script, draws=False, count=4)]
    assert found == ["mason 5", "mason 9", "mason 1", ""]
    assert [text for text, _ in candidates(segments, script, False, count=2)] == found[:2]


@pytest.mark.parametrize("strategy", ["span", "beam:3", "top-p:0.9", "greedy"])
def test_the_first_of_the_candidates_is_the_answer(
    strategy: str, segments: SegmentTokenizer
) -> None:
    reader = reader_of(segments)
    context, questions = PASSAGES[0].context, ["Who built the mill?", "When?"]
    answers = reader.answer(context, questions, strategy)
    if strategy != "top-p:0.9":
        found = reader.candidates(context, questions, 4, strategy)
        assert [best.text for best, *_ in found] == [answer.text for answer in answers]
        for (best, *others), answer in zip(found, answers, strict=True):
            assert best.log_probability == pytest.approx(answer.log_probability)
            key = "mean_log_probability" if strategy == "beam:3" else "log_probability"
            assert all(getattr(other, key) <= getattr(best, key) for other in others)
    assert all((a.probability_at_least is not None) == (strategy == "span") for a in answers)


@pytest.mark.parametrize("count", [0, 101])
def test_the_number_of_candidates_is_bounded(count: int, segments: SegmentTokenizer) -> None:
    with pytest.raises(InputError, match=f"{count} answers are out of range"):
        reader_of(segments).candidates("A king.", ["Who?"], count)
