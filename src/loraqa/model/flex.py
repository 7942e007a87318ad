"""Attention over trees on a GPU: one kernel for all trees of a row, which skips what nobody sees.

FlexAttention (Dong et al. 2024) is given who sees whom as a function of two places in the row, and
leaves out all blocks of 128 by 128 in which nobody sees anybody.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from loraqa.prompt.batch import TreeSpan

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_TRUNK = -1


class FlexTrees:
    """`PackedTrees` for a GPU."""

    def __init__(self, spans: Sequence[TreeSpan], wanted: Tensor, device: torch.device) -> None:
        tree, branch = (labels.to(device) for labels in token_labels(spans))
        everywhere = torch.arange(len(tree), device=device)
        self._mask = _block_mask(sees(tree, branch, everywhere), len(tree), len(tree), device)
        at_wanted = sees(tree, branch, wanted.to(device))
        self._wanted_mask = _block_mask(at_wanted, len(wanted), len(tree), device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`."""
        return _attend(query, key, value, self._mask, scaling)

    def attend_from_wanted(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `PackedTrees.attend_from_wanted`."""
        return _attend(query, key, value, self._wanted_mask, scaling)


def token_labels(spans: Sequence[TreeSpan]) -> tuple[Tensor, Tensor]:
    """Each token's tree, and its branch within it (-1 in the trunk), (T,) both."""
    trees = torch.repeat_interleave(
        torch.arange(len(spans)), torch.tensor([span.end - span.start for span in spans])
    )
    pieces = [
        piece for span in spans for piece in ((_TRUNK, span.trunk), *enumerate(span.branches))
    ]
    labels, lengths = torch.tensor(pieces).unbind(1)
    return trees, torch.repeat_interleave(labels, lengths)


def sees(tree: Tensor, branch: Tensor, queries: Tensor) -> MaskMod:
    """Whether the query at a place of `queries` sees the key at a place of the row."""

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        place = queries[query]
        same_path = (branch[key] == _TRUNK) | (branch[key] == branch[place])
        return (tree[place] == tree[key]) & (key <= place) & same_path

    return mask


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float) -> Tensor:
    attention = _compiled_attention() if query.is_cuda else flex_attention
    attended: Tensor = attention(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
    return attended


@cache
def _compiled_attention() -> Any:
    # Lengths differ from batch to batch; without `dynamic` each would be compiled anew.
    return torch.compile(flex_attention, dynamic=True)


def _block_mask(mask: MaskMod, queries: int, keys: int, device: torch.device) -> BlockMask:
    return create_block_mask(mask, None, None, queries, keys, device=str(device))
