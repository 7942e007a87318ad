"""Grouped rows compute what plain rows compute, and pad little."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_model
from tests.speed.cpu.test_rows import TREES, check_that_they_go_their_own_way, spans_of

from loraqa.model.attention import RowAttention
from loraqa.model.rows import PaddedRowAttention
from loraqa.model.runner import TreeRunner
from loraqa.prompt.batch import TreeSpan
from loraqa.speed import grouped_rows
from loraqa.speed.grouped_rows import GroupedRowAttention


@given(
    trees=TREES,
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    steps=st.integers(1, 20),
    data=st.data(),
)
def test_they_attend_as_plain_rows(
    trees: Any, key_heads: int, groups: int, steps: int, data: st.DataObject
) -> None:
    spans = spans_of(trees)
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    states = {0: (some(key_heads, spans[-1].end, 4), some(key_heads, spans[-1].end, 4))}
    both: list[RowAttention] = [
        GroupedRowAttention(spans, states),
        PaddedRowAttention(spans, states),
    ]
    count = sum(len(span.branches) for span in spans)
    for _ in range(steps):
        query, key = some(1, key_heads * groups, count, 4), some(1, key_heads, count, 4)
        value = some(1, key_heads, count, 4)
        for rows in both:
            rows.add_token()
        torch.testing.assert_close(*(rows.attend(0, query, key, value, 0.3) for rows in both))
        if data.draw(st.booleans()):
            chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
            both = [rows.select(torch.tensor(chosen)) for rows in both]
            count = len(chosen)


def test_they_go_their_own_way_after_branching_off() -> None:
    check_that_they_go_their_own_way(GroupedRowAttention)


def grouped(*spans: TreeSpan) -> GroupedRowAttention:
    return GroupedRowAttention(spans, {0: (torch.zeros(1, spans[-1].end, 4),) * 2})


def test_trunks_of_similar_length_lie_together() -> None:
    rows = grouped(TreeSpan(0, 30, (2,)), TreeSpan(32, 5, (1, 1)), TreeSpan(39, 6, (3,)))
    assert [len(trunks.states[0][0]) for trunks in rows._trunks] == [2, 1]


def test_a_trunk_goes_with_its_last_row() -> None:
    rows = grouped(TreeSpan(0, 5, (2,)), TreeSpan(7, 5, (1, 1)))
    (trunks,) = rows.select(torch.tensor([2]))._trunks
    assert len(trunks.states[0][0]) == 1


@pytest.mark.parametrize(
    ("make_row_attention", "applies"), [(PaddedRowAttention, True), (GroupedRowAttention, False)]
)
def test_they_replace_plain_rows_alone(make_row_attention: Any, applies: bool) -> None:
    runner = TreeRunner(tiny_model("gpt2"), make_row_attention=make_row_attention)
    assert grouped_rows.applies(runner, frozenset(["answering"])) == applies
    assert not grouped_rows.applies(runner, frozenset(["training"]))
