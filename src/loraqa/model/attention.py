"""Attention over trees, registered with transformers' attention interface.

A model that looks its attention up there (`model.set_attn_implementation(TREE_ATTENTION)`) calls
`attend_trees` in every layer, which hands queries, keys and values to the object passed to the
model's `forward` as `trees`: `PackedTrees` here, for training, and the ones of `decoding.py`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from loraqa.model.blocks import Block, attend_blocks
from loraqa.prompt.batch import TreeSpan

TREE_ATTENTION = "loraqa_trees"

# What models pass along that changes nothing here: positions are in queries and keys already, who
# chooses trees has looked at the window, and the model is in eval mode.
_HARMLESS = frozenset(
    ["dropout", "is_causal", "output_router_logits", "position_ids", "sliding_window", "use_cache"]
)


class Trees(Protocol):
    """What is in the row of tokens that the model computes."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention of one layer.

        Args:
            layer: index of the layer.
            query: (1, heads, T, head size).
            key, value: (1, key heads, T, head size); heads is a multiple of key heads.
            scaling: factor on the products of queries and keys.

        Returns:
            (1, heads, T, head size).
        """
        ...


def attend_trees(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    trees: Trees,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. Returns (1, T, heads, head size), and no weights.

    Raises:
        ValueError: the model asks for more than softmax(scaling · QKᵀ)V, such as a cap on the
            products or a sink.
    """
    _check_plain(attention_mask=attention_mask, **options)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = trees.attend(module.layer_idx, query, key, value, factor)  # type: ignore[arg-type]
    return attended.transpose(1, 2), None


def _check_plain(**options: Any) -> None:
    unknown = [
        name
        for name, value in options.items()
        if name not in _HARMLESS and value is not None and value is not False
    ]
    if unknown:
        raise ValueError(f"attention over trees has no {', '.join(unknown)}")


AttentionInterface.register(TREE_ATTENTION, attend_trees)


class PackedTrees:
    """Trees in one row: each trunk is causal, each branch sees its trunk and itself.

    Attention goes tree by tree, so nothing is computed between trees that never meet.

    Args:
        spans: where the trees lie.
        wanted: (S,) the tokens that are computed in the last layer, in order.
        device: of the model.
    """

    def __init__(self, spans: Sequence[TreeSpan], wanted: Tensor, device: torch.device) -> None:
        self.spans = spans
        self._blocks: list[Block] = []
        self._wanted_blocks: list[Block] = []
        edges = torch.tensor([0, *(span.end for span in spans)])
        places = torch.searchsorted(wanted, edges).tolist()
        for span, (first, end) in zip(spans, pairwise(places), strict=True):
            trunk = slice(span.start, span.branches_start)
            branches, tree = slice(span.branches_start, span.end), slice(span.start, span.end)
            seen = branch_mask(span)
            seen_by_wanted = seen[wanted[first:end] - span.branches_start]
            self._blocks.append(Block.causal(trunk, device))
            self._blocks.append(Block(branches, tree, ~seen.to(device)))
            self._wanted_blocks.append(Block(slice(first, end), tree, ~seen_by_wanted.to(device)))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`."""
        return attend_blocks(query, key, value, self._blocks, scaling)

    def attend_from_wanted(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention of the wanted tokens, (1, heads, S, head size), to all keys and values."""
        return attend_blocks(query, key, value, self._wanted_blocks, scaling)


def branch_mask(span: TreeSpan) -> Tensor:
    """What the branches of a tree see: (branch tokens, trunk + branch tokens), true where seen."""
    lengths = torch.tensor(span.branches)
    branch = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    siblings_apart = (branch[:, None] == branch[None, :]).tril()
    trunk = siblings_apart.new_ones(len(branch), span.trunk)
    return torch.cat([trunk, siblings_apart], dim=1)
