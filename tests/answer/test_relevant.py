"""Long texts: which windows are read, and answers from them."""

from dataclasses import replace
from itertools import pairwise

import pytest
from tests.answer.conftest import LIMIT, stopping_model

from loraqa.answer.reader import Reader
from loraqa.answer.relevant import keep_relevant
from loraqa.model.runner import TreeRunner
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.squad import Passage, Question
from loraqa.squad.ranking import Ranking

TOPICS = ["salt", "mills", "kings", "rivers", "bread", "wool", "ships", "bells"]
LONG = " ".join(f"About {topic}: " + f"{topic} were sold in town. " * 6 for topic in TOPICS)
PASSAGES = [
    Passage("A king.", (Question("short", "Who?"),)),
    Passage(LONG, tuple(Question(topic, f"Who sold {topic}?") for topic in TOPICS[:3])),
]


@pytest.fixture
def encoder(segments: SegmentTokenizer) -> PromptEncoder:
    return PromptEncoder(segments, Template(), 250, 20, window_length=100)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_each_question_is_asked_on_the_windows_that_match_it_best(
    encoder: PromptEncoder, most: int
) -> None:
    every = encoder.encode_prompts(PASSAGES, LIMIT).trees
    windows = [tree for tree in every if tree.passage == 1]
    assert len(windows) > 8
    kept = keep_relevant(every, PASSAGES, most)
    assert [tree.passage for tree in kept if tree.passage == 0] == [0]
    texts = [LONG[slice(*tree.window)] for tree in windows]
    for question in PASSAGES[1].questions:
        asked = {t.window for t in kept if question.id in [b.question_id for b in t.branches]}
        best = Ranking(texts).order(question.text)[:most]
        assert asked == {windows[number].window for number in best}
        assert question.id in texts[best[0]]
    # A window that two questions share stays one tree.
    assert len({tree.window for tree in kept if tree.passage == 1}) == len(kept) - 1


def test_all_windows_can_be_read(encoder: PromptEncoder) -> None:
    every = encoder.encode_prompts(PASSAGES, LIMIT).trees
    assert keep_relevant(every, PASSAGES, None) == every
    assert keep_relevant(every, PASSAGES, 10_000) == every


@pytest.mark.parametrize("length", [60, 100])
def test_windows_have_at_most_their_length_and_cover_the_text(
    segments: SegmentTokenizer, length: int
) -> None:
    encoder = PromptEncoder(segments, Template(), 250, 128, window_length=length)
    trees = encoder.encode_prompts([PASSAGES[1]], LIMIT).trees
    lead = len(segments.encode([Template().context("")])[0].ids)
    assert all(len(tree.trunk) <= length + lead + 1 for tree in trees)
    covered = {n for tree in trees for n in range(*tree.window)}
    assert {n for n, mark in enumerate(LONG) if not mark.isspace()} <= covered
    # A text that fits is read whole.
    (whole,) = encoder.encode_prompts([PASSAGES[0]], LIMIT).trees
    assert whole.window == (0, len(PASSAGES[0].context))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("strategy", ["span", "greedy", "beam:2", "top-k:4"])
def test_answers_come_from_the_windows_that_are_read(
    kind: str, strategy: str, segments: SegmentTokenizer
) -> None:
    reader = Reader(
        *(TreeRunner(stopping_model(kind, "float32")), segments, Template(), 250, 20, 100, 1),
        max_answer_tokens=LIMIT,
        learned_no_answer=True,
    )
    passage = PASSAGES[1]
    texts = [LONG[slice(*t.window)] for t in reader.encoder.encode_prompts([passage], 12).trees]
    answers = reader.answer(LONG, [question.text for question in passage.questions], strategy)
    for answer, question in zip(answers, passage.questions, strict=True):
        best = texts[Ranking(texts).order(question.text)[0]]
        if answer.start is not None:
            assert strategy != "span" or LONG[answer.start : answer.end] in best
        assert answer.exact in (None, True)


def test_more_windows_never_lower_the_odds_of_the_best_span(segments: SegmentTokenizer) -> None:
    reader = Reader(
        *(TreeRunner(stopping_model("gpt2", "float32")), segments, Template(), 250, 20, 100, 1),
        max_answer_tokens=LIMIT,
        learned_no_answer=True,
    )
    questions = [question.text for question in PASSAGES[1].questions]
    chances = [
        [a.no_answer_probability for a in replace(reader, most_windows=n).answer(LONG, questions)]
        for n in (1, 3, 6, None)
    ]
    for fewer, more in pairwise(chances):
        assert all(a >= b - 1e-6 for a, b in zip(fewer, more, strict=True))
    assert chances[0] != chances[-1]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_bounds_stay_close_in_many_windows(kind: str, segments: SegmentTokenizer) -> None:
    reader = Reader(
        *(TreeRunner(stopping_model(kind, "float32")), segments, Template(), 250, 20, 100, None),
        max_answer_tokens=LIMIT,
        learned_no_answer=True,
    )
    for answer in reader.answer(LONG, [question.text for question in PASSAGES[1].questions]):
        assert answer.probability_at_most is not None
        assert answer.probability_at_least is not None
        assert answer.probability_at_most - answer.probability_at_least <= 0.1 + 1e-6
