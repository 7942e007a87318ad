"""Attention over packed trees on a CPU by matrix products and a softmax.

PyTorch's fused attention takes at least twice as long: in bf16 at every length measured (up to
1,000 tokens and more), in fp32 up to 512 keys.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from loraqa.model.attention import repeat_heads
from loraqa.model.runner import Runner, TreeRunner, Use
from loraqa.model.trees import PackedTreeAttention, branch_mask
from loraqa.prompt.batch import TreeBatch
from loraqa.speed.trial import check_trees

# Keys of a block, in tokens, up to which products are faster in fp32.
_LONGEST_IN_FP32 = 512
# A causal block is multiplied in pieces of so many queries. Keys after a piece are skipped; smaller
# pieces skip more, but multiply more slowly.
_QUERIES_AT_ONCE = 128


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the runner computes trees on a CPU, and no kernel for them works here."""
    plain = isinstance(runner, TreeRunner) and runner.make_tree_attention is PackedTreeAttention
    return plain and runner.model.device.type == "cpu"


def wrap(runner: TreeRunner) -> Runner:
    """Compare the products with plain attention, then let the runner attend by them."""
    check_trees(TreeAttentionByProducts, runner.model.device, runner.model.dtype)
    return replace(runner, make_tree_attention=TreeAttentionByProducts)


@dataclass(frozen=True)
class Block:
    """Some queries of a packed sequence, and all keys that they may see.

    Attributes:
        queries, keys: the tokens of the packed sequence that are queries and keys.
        seen: (queries, keys), true where a query sees a key; None in a causal block, where queries
            and keys are the same tokens.
    """

    queries: slice
    keys: slice
    seen: Tensor | None = None
    _biases: dict[tuple[torch.dtype, torch.device, int], Tensor] = field(
        default_factory=dict, init=False
    )

    @property
    def pieces(self) -> tuple["Block", ...]:
        """Cut a long causal block, so that most of its masked half is not computed."""
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

    def bias(self, states: Tensor, groups: int = 1) -> Tensor:
        """Return what is added to scores: 0 where a query sees a key, else -inf.

        The bias is made once and kept for all layers, because it is as large as the scores of a
        key head.

        Args:
            states: the bias has their dtype and device.
            groups: how many query heads share a key head.

        Returns:
            (groups · queries, keys), the same for each group.
        """
        kind = (states.dtype, states.device, groups)
        if kind not in self._biases:
            seen = self._causal_mask() if self.seen is None else self.seen
            self._biases[kind] = torch.where(seen, 0.0, -torch.inf).to(states).repeat(groups, 1)
        return self._biases[kind]

    def _causal_mask(self) -> Tensor:
        length = self.queries.stop - self.queries.start
        return torch.ones(length, length, dtype=torch.bool).tril()


class TreeAttentionByProducts:
    """`PackedTreeAttention` by products.

    Args:
        batch: the packed trees.
    """

    def __init__(self, batch: TreeBatch, _: torch.device) -> None:
        self._blocks: list[Block] = []
        for span in batch.spans:
            trunk = slice(span.start, span.branches_start)
            branches, tree = slice(span.branches_start, span.end), slice(span.start, span.end)
            self._blocks += Block(trunk, trunk), Block(branches, tree, branch_mask(span))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`."""
        return attend_blocks(query, key, value, self._blocks, scaling)


def attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scaling: float
) -> Tensor:
    """Compute softmax(scaling · QKᵀ) V within each block.

    Args:
        query: (1, heads, T, head size); the blocks take all of it in order.
        key, value: (1, key heads, T, head size); heads is a multiple of key heads.
        blocks: which queries see which keys.
        scaling: factor on the products.

    Returns:
        (1, heads, T, head size).
    """
    if _products_pay(query, blocks):
        pieces = tuple(piece for block in blocks for piece in block.pieces)
        attended: Tensor = ByProducts.apply(  # type: ignore[no-untyped-call]
            # Unlike those of an index, the gradients of squeeze are views.
            *(states.squeeze(0) for states in (query, key, value)),
            *(pieces, scaling),
        )
        return attended[None]
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_heads(key, groups), repeat_heads(value, groups)
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
    """Return whether products take less time than PyTorch's fused attention."""
    longest = max(block.keys.stop - block.keys.start for block in blocks)
    return query.dtype == torch.bfloat16 or longest <= _LONGEST_IN_FP32


class ByProducts(torch.autograd.Function):
    """Two matrix products and a softmax for each block; the weights are kept for the gradient.

    Query is (heads, tokens, head size), key and value (key heads, tokens, head size). The queries
    of all heads that share a key head are stacked to (key heads, groups · tokens, head size). So
    keys and values are not repeated, and the products also sum their gradients over the group. Each
    block copies its slices once, so that its products get contiguous tensors.
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
        groups = len(query) // len(key)
        attended = _token_by_token(query.new_empty, query.shape)
        kept: list[Tensor] = []
        for block in blocks:
            queries = _stacked(query[:, block.queries], groups) * scaling
            keys, values = key[:, block.keys].contiguous(), value[:, block.keys].contiguous()
            scores = torch.baddbmm(block.bias(query, groups), queries, keys.transpose(1, 2))
            weights = scores.softmax(dim=-1)
            attended[:, block.queries] = _apart(weights @ values, groups)
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
        groups = query_shape[0] // key_shape[0]
        d_query = _token_by_token(d_attended.new_empty, query_shape)
        d_key, d_value = (_token_by_token(d_attended.new_zeros, key_shape) for _ in range(2))
        kept = iter(ctx.saved_tensors)
        for block in ctx.blocks:
            queries, keys, values, weights = islice(kept, 4)
            d_block = _stacked(d_attended[:, block.queries], groups)
            d_value[:, block.keys] += weights.transpose(1, 2) @ d_block
            d_weights = d_block @ values.transpose(1, 2)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[:, block.queries] = _apart(d_scores @ keys, groups)
            d_key[:, block.keys] += d_scores.transpose(1, 2) @ queries
        return d_query.mul_(ctx.scaling), d_key, d_value, None, None


def _stacked(states: Tensor, groups: int) -> Tensor:
    """Stack the heads of each group: (heads, n, d) to (heads / groups, groups · n, d)."""
    heads, length, size = states.shape
    return states.contiguous().view(heads // groups, groups * length, size)


def _apart(states: Tensor, groups: int) -> Tensor:
    """Undo `_stacked`."""
    key_heads, length, size = states.shape
    return states.view(key_heads * groups, length // groups, size)


def _token_by_token(make: Callable[..., Tensor], shape: torch.Size) -> Tensor:
    """Make a tensor (heads, T, d) in which a token's heads follow one another.

    Models split and join heads in this layout, so they need no copy of it.
    """
    heads, length, size = shape
    return make(length, heads, size).transpose(0, 1)
