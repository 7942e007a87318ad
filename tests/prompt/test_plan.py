"""Every question is trained once per epoch, in an order determined by (seed, epoch)."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.prompt.batch import collate_padded, collate_trees
from loraqa.prompt.plan import BatchPlan, Size, pack, padded_tokens, tree_tokens
from loraqa.prompt.tree import Branch, Tree


def tree(number: int, trunk: int, branches: list[int]) -> Tree:
    return Tree(
        np.zeros(trunk, np.int32),
        tuple(
            Branch(f"{number}.{n}", np.zeros(length, np.int32), np.zeros(3, np.int32))
            for n, length in enumerate(branches)
        ),
        number,
        (0, 0),
    )


FORESTS = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.integers(1, 20), min_size=1, max_size=8)),
    min_size=1,
    max_size=20,
).map(lambda sizes: [tree(n, *size) for n, size in enumerate(sizes)])


def ids(trees: list[Tree]) -> list[str]:
    return [branch.question_id for tree in trees for branch in tree.branches]


@given(FORESTS, st.integers(1, 30), st.integers(1, 100), st.integers(0, 5))
def test_an_epoch_has_every_question_once(
    trees: list[Tree], questions: int, tokens: int, epoch: int
) -> None:
    plan = BatchPlan(trees, questions, tokens, seed=1)
    steps = list(plan.epoch(epoch))
    seen = [i for step in steps for batch in step for i in ids(batch)]
    assert Counter(seen) == Counter(ids(trees))
    assert len(steps) == plan.steps_in(epoch)
    assert all(len([i for b in step for i in ids(b)]) >= questions for step in steps[:-1])


@given(FORESTS, st.integers(1, 30), st.integers(1, 100))
def test_steps_have_their_mean_size(trees: list[Tree], questions: int, tokens: int) -> None:
    plan = BatchPlan(trees, questions, tokens, seed=1, size=padded_tokens)
    batches = [batch for step in plan.epoch(0) for batch in step]
    assert plan.tokens_per_step() * plan.steps_in(0) == pytest.approx(sum(map(plan.size, batches)))


@given(FORESTS, st.integers(0, 10))
def test_an_epoch_continues_from_any_step(trees: list[Tree], start: int) -> None:
    plan = BatchPlan(trees, 4, 60, seed=3)
    whole = [[ids(batch) for batch in step] for step in plan.epoch(2)]
    rest = [[ids(batch) for batch in step] for step in plan.epoch(2, start)]
    assert rest == whole[start:]


def test_epochs_and_seeds_have_different_orders() -> None:
    trees = [tree(n, 5, [3]) for n in range(50)]
    orders = {
        tuple(
            i for step in BatchPlan(trees, 4, 60, seed).epoch(epoch) for b in step for i in ids(b)
        )
        for seed in range(2)
        for epoch in range(2)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("size", [tree_tokens, padded_tokens])
@given(trees=FORESTS, tokens=st.integers(1, 400))
def test_batches_are_within_the_budget_and_as_large_as_possible(
    size: Size, trees: list[Tree], tokens: int
) -> None:
    batches = pack(trees, tokens, size)
    assert Counter(i for batch in batches for i in ids(batch)) == Counter(ids(trees))
    for batch in batches:
        assert size(batch) <= tokens or len(ids(batch)) == 1
    for batch, after in pairwise(batches):
        assert size([*batch, after[0]]) > tokens


@given(FORESTS)
def test_sizes_match_the_tensors(trees: list[Tree]) -> None:
    assert tree_tokens(trees) == collate_trees(trees).input_ids.numel()
    assert padded_tokens(trees) == collate_padded(trees, pad_id=0).input_ids.numel()


def test_packing_measures_each_tree_only_a_few_times() -> None:
    measured = 0

    def size(trees: Sequence[Tree]) -> int:
        nonlocal measured
        measured += len(trees)
        return tree_tokens(trees)

    trees = [tree(n, 5, [3]) for n in range(2000)]
    for tokens in (1, 100, 10**9):
        measured = 0
        pack(trees, tokens, size)
        assert measured < 10 * len(trees)
