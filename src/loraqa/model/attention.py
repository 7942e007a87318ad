"""Attention over trees, registered with transformers' attention interface.

A model that looks its attention up there (`model.set_attn_implementation(TREE_ATTENTION)`) calls
`attend_trees` in every layer, which hands queries, keys and values to the object passed to the
model's `forward` as `trees`: `PackedTrees` here, for training, and the ones of `decoding.py`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

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
    """

    def __init__(self, spans: Sequence[TreeSpan], device: torch.device) -> None:
        self.spans = spans
        self._masks = [branch_mask(span, device) for span in spans]

    def attend(
        self,
        layer: int,  # noqa: ARG002 - every layer attends alike
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
    ) -> Tensor:
        """See `Trees.attend`."""
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_heads(key, groups), repeat_heads(value, groups)
        pieces = []
        for span, mask in zip(self.spans, self._masks, strict=True):
            trunk = slice(span.start, span.branches_start)
            branches = slice(span.branches_start, span.end)
            tree = slice(span.start, span.end)
            pieces.append(
                scaled_dot_product_attention(
                    query[:, :, trunk],
                    key[:, :, trunk],
                    value[:, :, trunk],
                    is_causal=True,
                    scale=scaling,
                )
            )
            pieces.append(
                scaled_dot_product_attention(
                    query[:, :, branches],
                    key[:, :, tree],
                    value[:, :, tree],
                    attn_mask=mask,
                    scale=scaling,
                )
            )
        return torch.cat(pieces, dim=2)


def branch_mask(span: TreeSpan, device: torch.device) -> Tensor:
    """What the branches of a tree see: (branch tokens, trunk + branch tokens), true where seen."""
    lengths = torch.tensor(span.branches, device=device)
    branch = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    siblings_apart = (branch[:, None] == branch[None, :]).tril()
    trunk = siblings_apart.new_ones(len(branch), span.trunk)
    return torch.cat([trunk, siblings_apart], dim=1)


def repeat_heads(states: Tensor, groups: int) -> Tensor:
    """Give every query head its key head: (.., key heads, T, d) to (.., heads, T, d)."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)
