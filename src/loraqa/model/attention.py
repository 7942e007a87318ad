"""Attention over trees, registered with transformers' attention interface.

After `model.set_attn_implementation(TREE_ATTENTION)` every layer of a model calls `attend_trees`
instead of its own attention. `attend_trees` hands queries, keys and values to the object that was
passed to the model as `tree_attention`: `PackedTreeAttention` for training and for prompts,
`PaddedRowAttention` in decoding.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

TREE_ATTENTION = "loraqa_trees"

States = Mapping[int, tuple[Tensor, Tensor]]
"""Keys and values of each layer, both (key heads, T, head size)."""

# Options that models pass along and that change nothing here: positions are already in queries and
# keys, `choose_runner` has checked the sliding window, and the model is in eval mode.
_HARMLESS = frozenset(
    ["dropout", "is_causal", "output_router_logits", "position_ids", "sliding_window", "use_cache"]
)


class TreeAttention(Protocol):
    """The attention of a packed sequence of tokens."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Compute softmax(scaling · QKᵀ) V of one layer; each token sees only what it may see.

        Args:
            layer: index of the layer.
            query: (1, heads, T, head size).
            key, value: (1, key heads, T, head size); heads is a multiple of key heads.
            scaling: factor on the products of queries and keys.

        Returns:
            (1, heads, T, head size).
        """
        ...


class RowAttention(TreeAttention, Protocol):
    """Attention in decoding: each row is an unfinished answer, with one new token in each pass.

    The new token sees the trunk of the row's tree and the row's own tokens: its prompt and what it
    has written.
    """

    def add_token(self) -> None:
        """Let every row see one more token of its own. Called before each forward pass."""
        ...

    def select(self, rows: Tensor) -> "RowAttention":
        """Keep these rows, (rows',), in this order; a row named twice is duplicated."""
        ...


NOT_REPLACED = "its attention cannot be replaced by way of transformers' attention interface"


class UnsupportedAttentionError(ValueError):
    """A model's attention does more than softmax(scaling · QKᵀ) V, or cannot be replaced."""


def attend_trees(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    tree_attention: TreeAttention | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend over trees; transformers calls this in every layer.

    Returns:
        (1, T, heads, head size), and None in place of attention weights.

    Raises:
        UnsupportedAttentionError: the model asks for more, such as logit soft-capping or sinks, or
            does not pass `tree_attention` on.
    """
    if tree_attention is None:
        raise UnsupportedAttentionError(NOT_REPLACED)
    _check_plain(attention_mask=attention_mask, **options)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    attended = tree_attention.attend(layer, query, key, value, factor)
    return attended.transpose(1, 2), None


def repeat_heads(states: Tensor, groups: int) -> Tensor:
    """Repeat each key head for its query heads: (.., key heads, T, d) to (.., heads, T, d)."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=-3)


def _check_plain(**options: Any) -> None:
    unknown = [
        name
        for name, value in options.items()
        if name not in _HARMLESS and value is not None and value is not False
    ]
    if unknown:
        raise UnsupportedAttentionError(
            f"its attention uses {', '.join(unknown)}, which attention over trees does not support"
        )


AttentionInterface.register(TREE_ATTENTION, attend_trees)
