"""Sharing a step among processes: complete, repeatable, and nearly even."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.prompt.shares import shares

costs = st.lists(st.integers(0, 1000), max_size=40)


def loads(costs: list[int], ranks: int) -> list[int]:
    return [sum(costs[item] for item in items) for items in shares(costs, ranks)]


@given(costs, st.integers(1, 9))
def test_every_item_has_one_process(costs: list[int], ranks: int) -> None:
    shared = shares(costs, ranks)
    assert len(shared) == ranks
    assert sorted(item for items in shared for item in items) == list(range(len(costs)))
    assert all(items == sorted(items) for items in shared)
    assert shared == shares(costs, ranks)


@given(st.lists(st.integers(0, 1000), max_size=7), st.integers(2, 3))
def test_the_most_is_within_grahams_bound_of_the_least_possible(
    costs: list[int], ranks: int
) -> None:
    """Longest first has at most 4/3 - 1/(3 ranks) of it, and no exchange makes that worse."""
    ways = product(range(ranks), repeat=len(costs))
    best = min(max(np.bincount(way, costs, ranks)) if way else 0 for way in ways)
    assert max(loads(costs, ranks)) <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


def test_an_exchange_finds_what_longest_first_misses() -> None:
    """Longest first gives 3 + 2 + 2 and 3 + 2; the best is even."""
    assert sorted(loads([3, 3, 2, 2, 2], 2)) == [6, 6]


def test_fewer_items_than_processes_leave_some_without() -> None:
    assert sorted(map(len, shares([5, 7], 4))) == [0, 0, 1, 1]
    assert shares([], 3) == [[], [], []]


@pytest.mark.parametrize("ranks", [2, 3, 64, 1024])
def test_with_32_questions_for_each_process_they_wait_little(ranks: int) -> None:
    """Contexts and questions have lengths like SQuAD's."""
    chance = np.random.default_rng(0)
    contexts = 6.4 * ranks
    trees = 120 + chance.gamma(2, 20, int(contexts)) + chance.integers(1, 11, int(contexts)) * 18
    found = loads([int(tree) for tree in trees], ranks)
    assert 1 - np.mean(found) / max(found) < 0.03
