"""The C kernel for rows computes what plain rows compute in fp32, and rounds once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import needs_compiler
from torch import Tensor

from loraqa.model.attention import RowAttention
from loraqa.model.rows import PaddedRowAttention
from loraqa.model.runner import MakeRowAttention
from loraqa.prompt.batch import TreeSpan
from loraqa.speed.cpu.rows import CompiledRowAttention

# How far rounding once may be off, relative.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8}
TREES = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.integers(1, 6), min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)


def spans_of(trees: list[tuple[int, list[int]]]) -> list[TreeSpan]:
    spans: list[TreeSpan] = []
    for trunk, branches in trees:
        spans.append(TreeSpan(spans[-1].end if spans else 0, trunk, tuple(branches)))
    return spans


@needs_compiler
@pytest.mark.parametrize("dtype", ROUNDING)
@given(
    trees=TREES,
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    size=st.integers(1, 40),
    steps=st.integers(1, 40),
    data=st.data(),
)
def test_both_attend_alike(
    dtype: torch.dtype,
    trees: list[tuple[int, list[int]]],
    key_heads: int,
    groups: int,
    size: int,
    steps: int,
    data: st.DataObject,
) -> None:
    spans = spans_of(trees)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    # As a model gives them: what lies side by side is a token's heads, not a head's tokens.
    states = {
        layer: tuple(some(2, spans[-1].end, key_heads, size).transpose(1, 2)) for layer in range(2)
    }
    precise = {layer: (key.float(), value.float()) for layer, (key, value) in states.items()}
    both: list[RowAttention] = [
        PaddedRowAttention(spans, precise),
        CompiledRowAttention(spans, states),
    ]
    count = sum(len(span.branches) for span in spans)
    for step in range(steps):
        if step % 7 == 1:
            chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=9))
            both = [rows.select(torch.tensor(chosen)) for rows in both]
            count = len(chosen)
        for rows in both:
            rows.add_token()
        for layer in range(2):
            query = some(1, key_heads * groups, count, size)
            key, value = some(1, key_heads, count, size), some(1, key_heads, count, size)
            new = query, key, value
            expected = both[0].attend(layer, *(each.float() for each in new), 0.4)
            actual = both[1].attend(layer, *new, 0.4)
            assert (actual.dtype, actual.shape) == (dtype, query.shape)
            torch.testing.assert_close(actual.float(), expected, rtol=ROUNDING[dtype], atol=1e-5)


@needs_compiler
def test_they_go_their_own_way_after_branching_off() -> None:
    check_that_they_go_their_own_way(CompiledRowAttention)


def check_that_they_attend_as_plain_rows(make: MakeRowAttention, data: st.DataObject) -> None:
    """Draw trees and steps of decoding, and compare with plain rows in fp64."""
    trees = data.draw(TREES)
    key_heads, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    steps = data.draw(st.integers(1, 20))
    spans = spans_of(trees)
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    states = {
        layer: (some(key_heads, spans[-1].end, 4), some(key_heads, spans[-1].end, 4))
        for layer in range(2)
    }
    both: list[RowAttention] = [
        make(spans, states),
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


def check_that_they_go_their_own_way(kind: MakeRowAttention) -> None:
    spans = spans_of([(3, [2, 1])])
    states = {0: (torch.randn(1, 6, 4), torch.randn(1, 6, 4))}
    first, second, elsewhere = torch.randn(3, 3, 1, 1, 2, 4)
    alone, rows = kind(spans, states), kind(spans, states)
    other = rows.select(torch.tensor([0, 1]))
    for each, new in ((alone, first), (rows, first), (other, elsewhere)):
        each.add_token()
        each.attend(0, *new, 0.5)
    for each in (alone, rows):
        each.add_token()
    assert torch.equal(rows.attend(0, *second, 0.5), alone.attend(0, *second, 0.5))


@needs_compiler
def test_a_whole_scaling_is_a_number_too_and_other_widths_are_refused() -> None:
    rows = CompiledRowAttention(
        spans_of([(3, [2])]), {0: (torch.randn(1, 5, 4), torch.randn(1, 5, 4))}
    )
    rows.add_token()
    query, key, value = torch.randn(3, 1, 1, 1, 4)
    assert torch.equal(rows.attend(0, query, key, value, 1), rows.attend(0, query, key, value, 1.0))
    with pytest.raises(ValueError, match="width"):
        rows.attend(0, query, key, value[..., :3], 1.0)


@needs_compiler
def test_scores_of_any_size_are_no_trouble() -> None:
    """As in any softmax that takes the largest score off."""
    spans = spans_of([(3, [2])])
    states = {0: (torch.full((1, 5, 4), 1e4), torch.randn(1, 5, 4))}
    rows = CompiledRowAttention(spans, states)
    rows.add_token()
    query, value = torch.full((1, 1, 1, 4), 1e4), torch.zeros(1, 1, 1, 4)
    attended = rows.attend(0, query, -query, value, 1.0)
    expected = states[0][1][:, [0, 1, 2, 3, 4]].mean(dim=1)
    torch.testing.assert_close(attended[0, :, 0], expected)
