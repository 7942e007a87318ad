"""Rows of different lengths attend as plain rows do; here the kernel is computed by hand."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_model
from tests.speed.cpu.test_rows import TREES, check_that_they_go_their_own_way, spans_of
from tests.speed.gpu import flash_by_hand

from loraqa.model.attention import RowAttention
from loraqa.model.rows import PaddedRowAttention
from loraqa.model.runner import TreeRunner
from loraqa.speed.gpu import rows as varlen_rows
from loraqa.speed.gpu.rows import VarlenRowAttention
from loraqa.speed.trial import UnusableError


@pytest.fixture(autouse=True, scope="module")
def by_hand() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_rows, "attend_segments", flash_by_hand.attend_segments)
        yield


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

    states = {
        layer: (some(key_heads, spans[-1].end, 4), some(key_heads, spans[-1].end, 4))
        for layer in range(2)
    }
    both: list[RowAttention] = [
        VarlenRowAttention(spans, states),
        PaddedRowAttention(spans, states),
    ]
    count = sum(len(span.branches) for span in spans)
    for _ in range(steps):
        for rows in both:
            rows.add_token()
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
    check_that_they_go_their_own_way(VarlenRowAttention)


def test_a_kernel_is_compared_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TreeRunner(tiny_model("gpt2"))
    assert varlen_rows.wrap(runner).make_row_attention is VarlenRowAttention
    monkeypatch.setattr(varlen_rows, "merge", lambda one, *_: one)
    with pytest.raises(
        UnusableError,
        match=r"^its sums of attention differ from the plain ones \(relative error .*\)$",
    ):
        varlen_rows.wrap(runner)


def test_they_are_not_for_a_cpu() -> None:
    runner = TreeRunner(tiny_model("gpt2", "bfloat16"))
    assert not varlen_rows.applies(runner, frozenset(["answering"]))
