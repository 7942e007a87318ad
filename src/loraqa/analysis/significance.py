"""How sure a score is, and whether two scores differ: bootstrap intervals and McNemar's test."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean of a figure over questions, and its 95% interval (see `interval`)."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Floats, clusters: Ints) -> "Estimate":
        """Return the mean and the interval of `values`; the arguments are those of `interval`."""
        return cls(float(values.mean()), *interval(values, clusters))

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval is above or below 0, else 0."""
        return (self.low > 0) - (self.high < 0)


def interval(values: Floats, clusters: Ints) -> tuple[float, float]:
    """Return the 95% interval of the mean by bootstrap over clusters.

    Questions on one context are not independent, so whole contexts are drawn again. The interval of
    a difference is that of `values` which are differences, question by question.

    Args:
        values: (questions,) a number for each question.
        clusters: (questions,) the context of each question, numbered from 0.
    """
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)
    drawn = np.random.default_rng(0).integers(len(sums), size=(_RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Return the p-value of McNemar's exact test, two-sided.

    It is the probability that the questions which only one of two ways answers right would be split
    so unevenly, or more, if each fell to either way with probability 1/2.

    Args:
        first, second: (questions,) whether each way answers each question right.
    """
    from scipy.stats import binomtest

    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_one, only_other = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    if only_one + only_other == 0:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)
