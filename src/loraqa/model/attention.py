"""Attention over trees, registered with transformers' attention interface.

A model that looks its attention up there (`model.set_attn_implementation(TREE_ATTENTION)`) calls
`attend_trees` in every layer, which hands queries, keys and values to the object passed to the
model's `forward` as `trees`: packed trees, for training and for prompts, and the growing
rows of `rows.py`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

TREE_ATTENTION = "loraqa_trees"

States = Mapping[int, tuple[Tensor, Tensor]]
"""Keys and values of each layer, (key heads, T, head size) both."""

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


class PackedTrees(Trees, Protocol):
    """Trees in one row: each trunk is causal, each branch sees its trunk and itself."""

    def attend_from_wanted(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """As `attend`, of the S wanted tokens alone: query and result are (1, heads, S, d)."""
        ...


class Rows(Trees, Protocol):
    """Rows that each see the trunk of their tree, their own prompt and what they have written."""

    def make_room(self) -> None:
        """Before each forward pass: every row is to see one more token of its own."""
        ...

    def select(self, rows: Tensor) -> "Rows":
        """These rows with their trunks. They may go another way than those here."""
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
