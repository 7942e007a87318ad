"""Attention block by block is the attention that one mask over everything gives."""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from loraqa.speed.cpu.products import Block, attend_blocks

SCALING = 0.3


@pytest.fixture(params=["products", "products of a few queries", "fused"])
def _any_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    by_products = request.param != "fused"
    monkeypatch.setattr("loraqa.speed.cpu.products._products_pay", lambda *_: by_products)
    if request.param == "products of a few queries":
        monkeypatch.setattr("loraqa.speed.cpu.products._QUERIES_AT_ONCE", 3)


any_way = pytest.mark.usefixtures("_any_way")


def blocks_and_mask(lengths: list[int], generator: torch.Generator) -> tuple[list[Block], Tensor]:
    """Causal blocks and blocks with a mask in turn, these looking back at all keys before."""
    edges = list(accumulate(lengths, initial=0))
    seen = torch.zeros(edges[-1], edges[-1], dtype=torch.bool)
    blocks = []
    for number, (start, end) in enumerate(pairwise(edges)):
        tokens = slice(start, end)
        if number % 2 == 0:
            blocks.append(Block(tokens, tokens))
            seen[tokens, tokens] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        else:
            mask = torch.rand(end - start, end, generator=generator) < 0.5
            mask[:, 0] = True
            blocks.append(Block(tokens, slice(0, end), mask))
            seen[tokens, :end] = mask
    return blocks, seen


def states(length: int, heads: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(1, heads, length, 4, generator=generator, dtype=torch.float64)
    return drawn.requires_grad_()


@any_way
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_it_is_attention_with_one_mask(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks, seen = blocks_and_mask(lengths, generator)
    inputs = query, key, value = [states(sum(lengths), 2, generator) for _ in range(3)]
    expected = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=SCALING)
    attended = attend_blocks(query, key, value, blocks, SCALING)
    torch.testing.assert_close(attended, expected)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients, expected_gradients = (
        torch.autograd.grad((output * weights).sum(), inputs) for output in (attended, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients)


@any_way
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (3, 1), (2, 2)])
def test_key_heads_are_shared_by_query_heads(heads: int, key_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks, seen = blocks_and_mask([4, 3], generator)
    inputs = [states(7, count, generator) for count in (heads, key_heads, key_heads)]
    query, key, value = inputs
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=SCALING, enable_gqa=True
    )
    attended = attend_blocks(query, key, value, blocks, SCALING)
    torch.testing.assert_close(attended, expected)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients, expected_gradients = (
        torch.autograd.grad((output * weights).sum(), inputs) for output in (attended, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients)


def test_products_repeat_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("loraqa.speed.cpu.products.repeat_heads")
    generator = torch.Generator().manual_seed(0)
    query, key, value = (states(5, count, generator) for count in (6, 2, 2))
    attended = attend_blocks(query, key, value, [Block(slice(0, 5), slice(0, 5))], SCALING)
    # A model joins the heads of each token; in this layout it copies nothing.
    joined = attended.transpose(1, 2)
    assert joined.is_contiguous()
    gradients = torch.autograd.grad(joined.sum(), (query, key, value))
    assert all(gradient.transpose(1, 2).is_contiguous() for gradient in gradients)


@any_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks, seen = blocks_and_mask([40, 30], generator)
    exact = [states(70, 2, generator) for _ in range(3)]
    expected = scaled_dot_product_attention(*exact, attn_mask=seen, scale=SCALING)
    rounded = attend_blocks(*(each.to(dtype) for each in exact), blocks, SCALING)
    error = (rounded - expected).norm() / expected.norm()
    assert error < 4 * torch.finfo(dtype).eps


def test_a_causal_block_in_pieces_leaves_out_most_of_what_is_masked() -> None:
    block = Block(slice(5, 305), slice(5, 305))
    assert [(p.queries, p.keys) for p in block.pieces] == [
        (slice(5, 105), slice(5, 105)),
        (slice(105, 205), slice(5, 205)),
        (slice(205, 305), slice(5, 305)),
    ]
    # Their biases are made once for all layers.
    assert block.pieces is block.pieces
    short = Block(slice(0, 128), slice(0, 128))
    assert short.pieces == (short,)


def test_a_bias_is_made_once_in_each_dtype() -> None:
    block, single, double = Block(slice(0, 3), slice(0, 3)), torch.ones(1), torch.ones(1).double()
    assert block.bias(single) is block.bias(single)
    assert torch.equal(block.bias(single, groups=2), torch.cat([block.bias(single)] * 2))
    assert (block.bias(single).dtype, block.bias(double).dtype) == (single.dtype, double.dtype)


def test_fused_attention_makes_no_bias_of_causal_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraqa.speed.cpu.products._products_pay", lambda *_: False)
    monkeypatch.delattr(Block, "bias")
    row = torch.zeros(1, 2, 5, 4)
    attend_blocks(row, row, row, [Block(slice(0, 5), slice(0, 5))], SCALING)
