"""Rows of variable lengths attend as growing ones do; the kernel is computed by hand here."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.speed.cpu.test_rows import (
    TREES,
    check_that_they_go_their_own_way,
    spans_of,
)
from tests.speed.gpu import flash_by_hand

from loraqa.model.attention import Rows
from loraqa.model.rows import GrowingRows
from loraqa.speed.gpu.rows import VarlenRows


@pytest.fixture(autouse=True, scope="module")
def by_hand() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraqa.speed.gpu.rows.attend_segments", flash_by_hand.attend_segments)
        yield


@given(
    trees=TREES,
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    steps=st.integers(1, 20),
    data=st.data(),
)
def test_they_attend_as_growing_ones_do(
    trees: Any, key_heads: int, groups: int, steps: int, data: st.DataObject
) -> None:
    spans = spans_of(trees)
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    states = {
        layer: (some(key_heads, spans[-1].end, 4), some(key_heads, spans[-1].end, 4))
        for layer in range(2)
    }
    both: list[Rows] = [VarlenRows(spans, states), GrowingRows(spans, states)]
    count = sum(len(span.branches) for span in spans)
    for _ in range(steps):
        for rows in both:
            rows.make_room()
        for layer in states:
            query, key = some(1, key_heads * groups, count, 4), some(1, key_heads, count, 4)
            value = some(1, key_heads, count, 4)
            torch.testing.assert_close(
                *(rows.attend(layer, query, key, value, 0.3) for rows in both)
            )
        if data.draw(st.booleans()):
            chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
            both = [rows.select(torch.tensor(chosen)) for rows in both]
            count = len(chosen)


def test_they_go_their_own_way_after_branching_off() -> None:
    check_that_they_go_their_own_way(VarlenRows)
