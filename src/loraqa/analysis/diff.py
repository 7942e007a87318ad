"""Compare two evaluations question by question."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from loraqa.analysis.error_kinds import kind_of
from loraqa.analysis.outcome import Asked, Outcome
from loraqa.analysis.significance import mcnemar
from loraqa.analysis.slices import Mean, members_of_slices
from loraqa.errors import InputError

Pair = tuple[Asked, Asked]


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
    change: Mean

    @classmethod
    def of(cls, pairs: Sequence[Pair], score: str) -> "Change":
        """Return the change of `score`, which is "exact_match" or "f1"."""
        first = [getattr(one, score) for one, _ in pairs]
        second = [getattr(other, score) for _, other in pairs]
        changes = [b - a for a, b in zip(first, second, strict=True)]
        contexts = [one.context for one, _ in pairs]
        return cls(100 * fmean(first), 100 * fmean(second), Mean.of(changes, contexts))


@dataclass(frozen=True, slots=True)
class SliceChange:
    """The changes of the questions with one label."""

    dimension: str
    label: str
    questions: int
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
    right = [(bool(one.exact_match), bool(other.exact_match)) for one, other in pairs]
    kinds = [_kinds(first, second, pair) for pair in pairs]
    return Difference(
        questions=len(pairs),
        contexts=len({one.context for one, _ in pairs}),
        left_out=len(first.questions) + len(second.questions) - 2 * len(pairs),
        exact_match=Change.of(pairs, "exact_match"),
        f1=Change.of(pairs, "f1"),
        only_first=right.count((True, False)),
        only_second=right.count((False, True)),
        p_value=mcnemar(*zip(*right, strict=True)),
        kinds=[(*kind, count) for kind, count in Counter(kinds).most_common()],
        slices=_slices(first, pairs),
        changed=_changed(pairs, kinds),
    )


def _pairs(first: Outcome, second: Outcome) -> list[Pair]:
    """Pair the questions with the same id, words and golds."""
    others = {other.id: other for other in second.questions}
    found = ((one, others.get(one.id)) for one in first.questions)
    return [
        (one, other)
        for one, other in found
        if other is not None
        and (one.question, one.golds) == (other.question, other.golds)
        and first.contexts[one.context] == second.contexts[other.context]
    ]


def _kinds(first: Outcome, second: Outcome, pair: Pair) -> tuple[str, str]:
    one, other = pair
    context, other_context = first.contexts[one.context], second.contexts[other.context]
    return kind_of(context, one), kind_of(other_context, other)


def _slices(first: Outcome, pairs: Sequence[Pair]) -> list[SliceChange]:
    by_id = {one.id: (one, other) for one, other in pairs}
    changes = []
    for dimension, label, members in members_of_slices(first):
        of_slice = [by_id[asked.id] for asked in members if asked.id in by_id]
        if of_slice:
            exact_match, f1 = (Change.of(of_slice, score) for score in ("exact_match", "f1"))
            changes.append(SliceChange(dimension, label, len(of_slice), exact_match, f1))
    return changes


def _changed(pairs: Sequence[Pair], kinds: Sequence[tuple[str, str]]) -> list[ChangedQuestion]:
    changed = [
        ChangedQuestion(
            id=one.id,
            context=one.context,
            question=one.question,
            golds=tuple(dict.fromkeys(gold.text for gold in one.golds)),
            first=one.given.text,
            second=other.given.text,
            first_kind=kind,
            second_kind=other_kind,
            f1_change=other.f1 - one.f1,
        )
        for (one, other), (kind, other_kind) in zip(pairs, kinds, strict=True)
        if one.given.text != other.given.text
    ]
    return sorted(changed, key=lambda each: each.f1_change)
