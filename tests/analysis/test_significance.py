"""Intervals and tests, against the normal distribution and against all outcomes of fair coins."""

from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from loraqa.analysis.significance import interval, mcnemar


def test_the_interval_of_independent_questions_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(60, 20, 4_000)
    low, high = interval(values, np.arange(4_000))
    error = values.std() / np.sqrt(4_000)
    normal = NormalDist(values.mean(), error)
    expected = [normal.inv_cdf(0.025), normal.inv_cdf(0.975)]
    assert np.allclose([low, high], expected, atol=error / 5)


def test_questions_on_one_context_that_agree_count_once() -> None:
    values = np.random.default_rng(1).normal(60, 20, 400)
    once = np.subtract(*interval(values, np.arange(400)))
    five_times = np.subtract(*interval(np.repeat(values, 5), np.repeat(np.arange(400), 5)))
    assert np.isclose(once, five_times)


@pytest.mark.parametrize("only_first", range(7))
def test_mcnemar_counts_the_outcomes_of_coins_that_are_at_least_so_uneven(only_first: int) -> None:
    """Six questions that one way alone answers right, two that both do, and one that neither."""
    first = [1] * only_first + [0] * (6 - only_first) + [1, 1, 0]
    second = [0] * only_first + [1] * (6 - only_first) + [1, 1, 0]
    uneven = [abs(sum(coins) - 3) >= abs(only_first - 3) for coins in product((0, 1), repeat=6)]
    assert mcnemar(first, second) == pytest.approx(np.mean(uneven))
    assert mcnemar(second, first) == pytest.approx(np.mean(uneven))


def test_ways_that_never_differ_do_not_differ() -> None:
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1
