"""Every question is trained once an epoch, in an order that (seed, epoch) determine."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loraqa.prompt.plan import BatchPlan, pack
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
def test_an_epoch_holds_every_question_once(
    trees: list[Tree], questions: int, tokens: int, epoch: int
) -> None:
    plan = BatchPlan(trees, questions, tokens, seed=1, size=len)
    steps = list(plan.epoch(epoch))
    seen = [i for step in steps for batch in step for i in ids(batch)]
    assert Counter(seen) == Counter(ids(trees))
    assert len(steps) == plan.steps_in(epoch)
    assert all(len([i for b in step for i in ids(b)]) >= questions for step in steps[:-1])


@given(FORESTS, st.integers(0, 10))
def test_an_epoch_goes_on_from_any_step(trees: list[Tree], start: int) -> None:
    plan = BatchPlan(trees, 4, 60, seed=3)
    whole = [[ids(batch) for batch in step] for step in plan.epoch(2)]
    rest = [[ids(batch) for batch in step] for step in plan.epoch(2, start)]
    assert rest == whole[start:]


def test_epochs_and_seeds_differ() -> None:
    trees = [tree(n, 5, [3]) for n in range(50)]
    orders = {
        tuple(
            i for step in BatchPlan(trees, 4, 60, seed).epoch(epoch) for b in step for i in ids(b)
        )
        for seed in range(2)
        for epoch in range(2)
    }
    assert len(orders) == 4


@given(FORESTS, st.integers(1, 150))
def test_batches_keep_to_their_budget(trees: list[Tree], tokens: int) -> None:
    for size in (len, lambda tree: tree.padded_length):
        for batch in pack(trees, tokens, size):
            assert sum(map(size, batch)) <= tokens or (
                len(batch) == 1 and len(batch[0].branches) == 1
            )
