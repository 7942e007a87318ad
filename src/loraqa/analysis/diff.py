"""Compare two evaluations question by question."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from loraqa.analysis.examined import Examined, examine
from loraqa.analysis.outcome import Outcome
from loraqa.analysis.scores import members_of_slices, percent
from loraqa.analysis.significance import Estimate, mcnemar
from loraqa.errors import InputError

Pair = tuple[Examined, Examined]


@dataclass(frozen=True, slots=True)
class Change:
    """A score of the first and of the second run, and the change, all in percent.

    Attributes:
        first, second: the scores.
        change: the second minus the first, with its 95% interval by paired bootstrap: contexts
            are drawn again, each with both runs' answers.
    """

    first: float
    second: float
    change: Estimate

    @classmethod
    def of(cls, pairs: Sequence[Pair], score: str) -> "Change":
        """Return the change of `score`, which is "exact_match" or "f1"."""
        first = [getattr(one.asked, score) for one, _ in pairs]
        second = [getattr(other.asked, score) for _, other in pairs]
        changes = [b - a for a, b in zip(first, second, strict=True)]
        contexts = [one.asked.context for one, _ in pairs]
        return cls(100 * fmean(first), 100 * fmean(second), percent(changes, contexts))


@dataclass(frozen=True, slots=True)
class SliceChange:
    """The changes of the questions with one label."""

    dimension: str
    label: str
    questions: int
    contexts: int
    exact_match: Change
    f1: Change


@dataclass(frozen=True, slots=True)
class ChangedQuestion:
    """A question that the runs answered differently, with the kinds of both answers."""

    id: str
    context: int
    question: str
    golds: tuple[str, ...]
    first: str
    second: str
    first_kind: str
    second_kind: str
    f1_change: float


@dataclass(frozen=True)
class Difference:
    """What differs between two evaluations of the same questions.

    Attributes:
        questions, contexts: how many both have answered.
        left_out: questions that only one of them has answered.
        exact_match, f1: the scores and their changes.
        only_first, only_second: questions that only the first, or only the second, has right.
        p_value: how probable it is, if both are equally good, that so few of these questions fall
            to one side: the exact two-sided test of McNemar (1947). It takes questions to be
            independent, unlike the intervals.
        kinds: how many questions have which kind in the first and in the second.
        slices: the changes by slice.
        changed: the questions with different answers: first those that got worse, by F1.
    """

    questions: int
    contexts: int
    left_out: int
    exact_match: Change
    f1: Change
    only_first: int
    only_second: int
    p_value: float
    kinds: list[tuple[str, str, int]]
    slices: list[SliceChange]
    changed: list[ChangedQuestion]


def diff(first: Outcome, second: Outcome) -> Difference:
    """Compare two evaluations on the questions that both have answered.

    Raises:
        InputError: they share no question.
    """
    pairs = _pairs(first, second)
    if not pairs:
        raise InputError(
            f"{first.model} and {second.model} were evaluated on different questions "
            f"({first.data['source']} and {second.data['source']}); evaluate both on the same data."
        )
    right = [tuple(bool(each.asked.exact_match) for each in pair) for pair in pairs]
    kinds = Counter((one.kind, other.kind) for one, other in pairs)
    return Difference(
        questions=len(pairs),
        contexts=len({one.asked.context for one, _ in pairs}),
        left_out=len(first.questions) + len(second.questions) - 2 * len(pairs),
        exact_match=Change.of(pairs, "exact_match"),
        f1=Change.of(pairs, "f1"),
        only_first=right.count((True, False)),
        only_second=right.count((False, True)),
        p_value=mcnemar(*zip(*right, strict=True)),
        kinds=[(*kind, count) for kind, count in kinds.most_common()],
        slices=_slices(pairs),
        changed=_changed(pairs),
    )


def _pairs(first: Outcome, second: Outcome) -> list[Pair]:
    """Pair the questions with the same id, words, golds and context."""
    others = {other.asked.id: other for other in examine(second)}
    found = ((one, others.get(one.asked.id)) for one in examine(first))
    return [
        (one, other) for one, other in found if other is not None and _what(one) == _what(other)
    ]


def _what(question: Examined) -> tuple[Any, ...]:
    return question.asked.question, question.asked.golds, question.context


def _slices(pairs: Sequence[Pair]) -> list[SliceChange]:
    by_id = {one.asked.id: (one, other) for one, other in pairs}
    changes = []
    for dimension, label, members in members_of_slices([one for one, _ in pairs]):
        of_slice = [by_id[each.asked.id] for each in members]
        exact_match, f1 = (Change.of(of_slice, score) for score in ("exact_match", "f1"))
        contexts = {each.asked.context for each in members}
        changes.append(SliceChange(dimension, label, len(of_slice), len(contexts), exact_match, f1))
    return changes


def _changed(pairs: Sequence[Pair]) -> list[ChangedQuestion]:
    changed = [
        ChangedQuestion(
            id=one.asked.id,
            context=one.asked.context,
            question=one.asked.question,
            golds=tuple(dict.fromkeys(gold.text for gold in one.asked.golds)),
            first=one.asked.given.text,
            second=other.asked.given.text,
            first_kind=one.kind,
            second_kind=other.kind,
            f1_change=other.asked.f1 - one.asked.f1,
        )
        for one, other in pairs
        if one.asked.given.text != other.asked.given.text
    ]
    return sorted(changed, key=lambda each: each.f1_change)
