"""Scores of slices, with intervals."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loraqa.analysis.examined import Examined
from loraqa.analysis.significance import Estimate
from loraqa.analysis.slices import DIMENSIONS


@dataclass(frozen=True, slots=True)
class Slice:
    """The questions with one label.

    Attributes:
        dimension, label: which questions these are.
        questions, contexts: how many questions on how many contexts.
        exact_match, f1: their scores in percent. Of one context the intervals say nothing.
    """

    dimension: str
    label: str
    questions: int
    contexts: int
    exact_match: Estimate
    f1: Estimate


def slices(questions: Sequence[Examined]) -> list[Slice]:
    """Return all slices that hold questions, by dimension, in the order of their labels."""
    return [_scored(*found) for found in members_of_slices(questions)]


def members_of_slices(questions: Sequence[Examined]) -> Iterator[tuple[str, str, list[Examined]]]:
    """Yield dimension, label and questions of all slices that hold questions, in order."""
    members: dict[tuple[str, str], list[Examined]] = defaultdict(list)
    for question in questions:
        for pair in question.labels.items():
            members[pair].append(question)
    for dimension in DIMENSIONS:
        for label in dimension.labels:
            if found := members.get((dimension.name, label)):
                yield dimension.name, label, found


def _scored(dimension: str, label: str, members: Sequence[Examined]) -> Slice:
    contexts = [each.asked.context for each in members]
    return Slice(
        dimension,
        label,
        len(members),
        len(set(contexts)),
        percent([each.asked.exact_match for each in members], contexts),
        percent([each.asked.f1 for each in members], contexts),
    )


def percent(values: Sequence[float], contexts: Sequence[int]) -> Estimate:
    """Return the mean of values from 0 to 1 in percent, with its interval over contexts."""
    clusters = np.unique(contexts, return_inverse=True)[1]
    return Estimate.of(100 * np.array(values, dtype=np.float64), clusters)
