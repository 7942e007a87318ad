"""Long texts: which windows are read, and answers from them."""

from math import exp

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
    for most in (None, 10_000):
        kept = keep_relevant(every, PASSAGES, most)
        assert [(tree.passage, tree.window) for tree in kept] == [
            (tree.passage, tree.window) for tree in every
        ]
        assert kept[0] is every[0]


@pytest.mark.parametrize("most", [1, 3, None])
def test_windows_that_match_better_are_more_probable(
    encoder: PromptEncoder, most: int | None
) -> None:
    every = encoder.encode_prompts(PASSAGES, LIMIT).trees
    kept = keep_relevant(every, PASSAGES, most)
    ranking = Ranking([LONG[slice(*tree.window)] for tree in every if tree.passage == 1])
    numbers = {t.window: n for n, t in enumerate(t for t in every if t.passage == 1)}
    for question in PASSAGES[1].questions:
        branches = {
            numbers[tree.window]: branch
            for tree in kept
            for branch in tree.branches
            if branch.question_id == question.id
        }
        priors = {number: exp(branch.log_prior) for number, branch in branches.items()}
        assert sum(priors.values()) == pytest.approx(1)
        best, *others = [n for n in ranking.order(question.text) if n in priors]
        scores = ranking.scores(question.text)
        for other in others:
            assert priors[best] / priors[other] == pytest.approx(
                exp(0.4 * (scores[best] - scores[other])), rel=1e-5
            )
    assert [b.log_prior for tree in kept if tree.passage == 0 for b in tree.branches] == [0]


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
