"""Figures that say how well the confidence of answers fits how often they are right.

All take the same two arrays: `confidence` (questions,), each from 0 to 1, and `right` (questions,),
each 1 if the answer is right and 0 if it is wrong.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers whose confidence lies in one interval.

    Attributes:
        low, high: the interval; `low` belongs to it, and `high` only if it is 1.
        count: number of answers.
        confidence: their mean confidence.
        right: the share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    right: float


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> list[Bin]:
    """Return the bins of a reliability diagram, of equal width, without the empty ones.

    Raises:
        ValueError: the arrays are empty, differ in length, or hold other values.
    """
    confidence, right = _checked(confidence, right)
    edges = np.linspace(0, 1, bins + 1)
    number = np.searchsorted(edges[1:-1], confidence, side="right")
    return [
        Bin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(np.sum(number == i)),
            confidence=float(confidence[number == i].mean()),
            right=float(right[number == i].mean()),
        )
        for i in np.unique(number)
    ]


def ece(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """Return the expected calibration error (Naeini et al., 2015), from 0 to 1.

    It is the distance between mean confidence and share of right answers in a bin, averaged over
    the answers. Raises as `reliability` does.
    """
    filled = reliability(confidence, right, bins)
    total = sum(each.count for each in filled)
    return sum(each.count * abs(each.confidence - each.right) for each in filled) / total


def brier(confidence: ArrayLike, right: ArrayLike) -> float:
    """Return the Brier score, the mean squared distance of confidence and `right`.

    Raises as `reliability` does.
    """
    confidence, right = _checked(confidence, right)
    return float(np.mean((confidence - right) ** 2))


def auroc(confidence: ArrayLike, right: ArrayLike) -> float | None:
    """Return how often a right answer has more confidence than a wrong one; ties count half.

    This is the area under the receiver operating characteristic. It is None if all answers are
    right, or all are wrong. Raises as `reliability` does.
    """
    confidence, right = _checked(confidence, right)
    of_right, of_wrong = confidence[right == 1], np.sort(confidence[right == 0])
    if not len(of_right) or not len(of_wrong):
        return None
    below, not_above = (np.searchsorted(of_wrong, of_right, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(of_wrong))


def risk_coverage(confidence: ArrayLike, right: ArrayLike) -> tuple[Floats, Floats]:
    """Return the risk at each coverage: which share is wrong of the answers with most confidence.

    A point is a threshold: the answers with at least so much confidence are given. Answers with
    equal confidence are given together. The last point is coverage 1.

    Returns:
        coverage (points,), rising, and risk (points,), both from 0 to 1.

    Raises as `reliability` does.
    """
    confidence, right = _checked(confidence, right)
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(1 - right[order])
    given = np.arange(1, len(order) + 1)
    last_of_ties = np.append(np.diff(confidence[order]) != 0, True)
    return (given / len(order))[last_of_ties], (wrong / given)[last_of_ties]


def _checked(confidence: ArrayLike, right: ArrayLike) -> tuple[Floats, Floats]:
    given = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if given[0].ndim != 1 or given[0].shape != given[1].shape or not len(given[0]):
        shapes = " and ".join(str(array.shape) for array in given)
        raise ValueError(f"{shapes} are no shapes of two arrays with a number for each answer")
    if not np.all((given[0] >= 0) & (given[0] <= 1)):
        raise ValueError("confidence is not from 0 to 1")
    if not np.all((given[1] == 0) | (given[1] == 1)):
        raise ValueError("right is neither 0 nor 1")
    return given
