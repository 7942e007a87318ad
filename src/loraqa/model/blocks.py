"""Attention over trees block by block: some tokens of a row, and the keys that they see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from loraqa.prompt.batch import TreeSpan

_LONGEST_IN_FP32 = 512
# Queries of a causal block that are multiplied with keys at once. Of the keys behind them none is,
# but small products run at a lower rate.
_QUERIES_AT_ONCE = 128


@dataclass(frozen=True)
class Block:
    """These queries see only these keys.

    Attributes:
        queries, keys: where they lie in their rows.
        seen: (queries, keys), true where a query sees a key; None where these are the same tokens,
            and each sees itself and those before.
    """

    queries: slice
    keys: slice
    seen: Tensor | None = None
    _biases: dict[tuple[torch.dtype, torch.device], Tensor] = field(
        default_factory=dict, init=False
    )

    @property
    def pieces(self) -> tuple["Block", ...]:
        """Blocks that are the same together, without most of what is masked in a causal one."""
        length = self.queries.stop - self.queries.start
        return (self,) if self.seen is not None or length <= _QUERIES_AT_ONCE else self._split

    @cached_property
    def _split(self) -> tuple["Block", ...]:
        length = self.queries.stop - self.queries.start
        count = math.ceil(length / _QUERIES_AT_ONCE)
        edges = [length * number // count for number in range(count + 1)]
        causal = self._causal_mask()
        return tuple(
            Block(
                slice(self.queries.start + first, self.queries.start + last),
                slice(self.keys.start, self.keys.start + last),
                causal[first:last, :last],
            )
            for first, last in pairwise(edges)
        )

    def bias(self, states: Tensor) -> Tensor:
        """What is added to scores: (queries, keys), 0 where a query sees a key, else -inf.

        It has the dtype and device of `states`. It is as large as the scores of one head, so it is
        made where it is first asked for, and kept for all other layers.
        """
        kind = (states.dtype, states.device)
        if kind not in self._biases:
            seen = self._causal_mask() if self.seen is None else self.seen
            self._biases[kind] = torch.where(seen, 0.0, -torch.inf).to(states)
        return self._biases[kind]

    def _causal_mask(self) -> Tensor:
        length = self.queries.stop - self.queries.start
        return torch.ones(length, length, dtype=torch.bool).tril()


class BlockTrees:
    """`PackedTrees`, tree by tree: nothing is computed between trees that never meet.

    Args:
        spans: where the trees lie.
        wanted: (S,) the tokens that are computed in the last layer, in order.
    """

    def __init__(self, spans: Sequence[TreeSpan], wanted: Tensor) -> None:
        self._blocks: list[Block] = []
        self._wanted_blocks: list[Block] = []
        edges = torch.tensor([0, *(span.end for span in spans)])
        places = torch.searchsorted(wanted, edges).tolist()
        for span, (first, end) in zip(spans, pairwise(places), strict=True):
            trunk = slice(span.start, span.branches_start)
            branches, tree = slice(span.branches_start, span.end), slice(span.start, span.end)
            seen = branch_mask(span)
            seen_by_wanted = seen[wanted[first:end] - span.branches_start]
            self._blocks += Block(trunk, trunk), Block(branches, tree, seen)
            self._wanted_blocks.append(Block(slice(first, end), tree, seen_by_wanted))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`."""
        return attend_blocks(query, key, value, self._blocks, scaling)

    def attend_from_wanted(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `PackedTrees.attend_from_wanted`."""
        return attend_blocks(query, key, value, self._wanted_blocks, scaling)


def branch_mask(span: TreeSpan) -> Tensor:
    """What the branches of a tree see: (branch tokens, trunk + branch tokens), true where seen."""
    lengths = torch.tensor(span.branches)
    branch = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    siblings_apart = (branch[:, None] == branch[None, :]).tril()
    trunk = siblings_apart.new_ones(len(branch), span.trunk)
    return torch.cat([trunk, siblings_apart], dim=1)


def attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scaling: float
) -> Tensor:
    """softmax(scaling · QKᵀ) V within each block.

    Args:
        query: (1, heads, Q, head size); the blocks take them in order, each once.
        key, value: (1, key heads, K, head size); heads is a multiple of key heads.
        blocks: who sees whom.
        scaling: factor on the products.

    Returns:
        (1, heads, Q, head size).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_heads(key, groups), repeat_heads(value, groups)
    if _products_pay(query, blocks):
        pieces = tuple(piece for block in blocks for piece in block.pieces)
        attended: Tensor = ByProducts.apply(  # type: ignore[no-untyped-call]
            query[0], key[0], value[0], pieces, scaling
        )
        return attended[None]
    parts = [
        scaled_dot_product_attention(
            query[:, :, block.queries],
            key[:, :, block.keys],
            value[:, :, block.keys],
            attn_mask=None if block.seen is None else block.bias(query),
            is_causal=block.seen is None,
            scale=scaling,
        )
        for block in blocks
    ]
    return torch.cat(parts, dim=2)


def _products_pay(query: Tensor, blocks: Sequence[Block]) -> bool:
    """Whether products and a softmax take less time than PyTorch's fused attention.

    On a CPU they take half of it or less, in bf16 up to a context's 1,000 tokens and beyond, in
    fp32 as long as what fused attention saves in memory traffic is little.
    """
    if query.device.type != "cpu":
        return False
    longest = max(block.keys.stop - block.keys.start for block in blocks)
    return query.dtype == torch.bfloat16 or longest <= _LONGEST_IN_FP32


def repeat_heads(states: Tensor, groups: int) -> Tensor:
    """Give every query head its key head: (.., key heads, T, d) to (.., heads, T, d)."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


class ByProducts(torch.autograd.Function):
    """Two matrix products and a softmax for each block; the weights are kept for the gradient.

    Query, key and value are (heads, tokens, head size). Each block's part of them is laid out once
    for all products of that block, which would else copy it every time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: tuple[Block, ...],
        scaling: float,
    ) -> Tensor:
        attended = torch.empty_like(query)
        kept: list[Tensor] = []
        for block in blocks:
            queries = query[:, block.queries] * scaling
            keys, values = key[:, block.keys].contiguous(), value[:, block.keys].contiguous()
            scores = torch.baddbmm(block.bias(query), queries, keys.transpose(1, 2))
            weights = scores.softmax(dim=-1)
            attended[:, block.queries] = weights @ values
            if any(ctx.needs_input_grad):
                kept += queries, keys, values, weights
        ctx.save_for_backward(*kept)
        ctx.blocks, ctx.scaling, ctx.shapes = blocks, scaling, (query.shape, key.shape)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_attended,) = grads
        query_shape, key_shape = ctx.shapes
        d_query = d_attended.new_empty(query_shape)
        d_key, d_value = d_attended.new_zeros(key_shape), d_attended.new_zeros(key_shape)
        kept = iter(ctx.saved_tensors)
        for block in ctx.blocks:
            queries, keys, values, weights = islice(kept, 4)
            d_block = d_attended[:, block.queries].contiguous()
            d_value[:, block.keys] += weights.transpose(1, 2) @ d_block
            d_weights = d_block @ values.transpose(1, 2)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[:, block.queries] = d_scores @ keys
            d_key[:, block.keys] += d_scores.transpose(1, 2) @ queries
        return d_query.mul_(ctx.scaling), d_key, d_value, None, None
