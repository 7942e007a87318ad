"""Attention over trees on a GPU: one kernel for all trees of a row, which skips other trees.

FlexAttention (Dong et al. 2024) is given who sees whom as a function of two places in the row, and
in which blocks of 128 by 128 anybody may: a block of queries looks no further back than where its
first tree starts. It is compiled once for each length of a row, and in the last layer for each
number of wanted tokens with it; `buckets.py` leaves few of both. Other trees in a row as long need
no compilation.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from loraqa.model.attention import Rows, States
from loraqa.model.compiled_rows import rows_of
from loraqa.prompt.batch import TreeSpan

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_TRUNK = -1
_BLOCK = 128

# By the 9th length Dynamo would give up, and attention be computed as one matrix of all scores.
torch._dynamo.config.recompile_limit = 256
_compiled_attention = torch.compile(flex_attention, dynamic=False)


class FlexTrees:
    """`PackedTrees` for a GPU.

    Args:
        spans: where the trees lie.
        tokens: of the whole row; those after the trees are padding, and see only themselves.
        wanted: (S,) the tokens that are computed in the last layer.
        device: of the model.
    """

    def __init__(
        self, spans: Sequence[TreeSpan], tokens: int, wanted: Tensor, device: torch.device
    ) -> None:
        self._spans = spans
        end = spans[-1].end
        padding = TreeSpan(end, trunk=0, branches=(1,) * (tokens - end))
        tree, branch = (labels.to(device) for labels in token_labels([*spans, padding]))
        self._mask = _block_mask(spans, tree, branch, torch.arange(tokens))
        self._wanted_mask = _block_mask(spans, tree, branch, wanted)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`."""
        return _attend(query, key, value, self._mask, scaling)

    def attend_from_wanted(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `WantedTrees.attend_from_wanted`."""
        return _attend(query, key, value, self._wanted_mask, scaling)

    def rows(self, prompts: States) -> Rows:
        """See `PackedTrees.rows`."""
        return rows_of(self._spans, prompts)


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


def blocks_seen(spans: Sequence[TreeSpan], tokens: int, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks of keys that each block of queries may see, as `BlockMask` takes them.

    Args:
        spans: where the trees lie.
        tokens: of the whole row.
        queries: (Q,) their places in the row, in order.

    Returns:
        How many blocks, (1, 1, query blocks), and which come first, (1, 1, query blocks, key
        blocks), both int32.
    """
    starts = [torch.full((span.end - span.start,), span.start) for span in spans]
    seen_from = torch.cat([*starts, torch.arange(spans[-1].end, tokens)])
    first_queries = torch.arange(0, len(queries), _BLOCK)
    last_queries = (first_queries + _BLOCK - 1).clamp(max=len(queries) - 1)
    first = seen_from[queries[first_queries]] // _BLOCK
    last = queries[last_queries] // _BLOCK
    key_blocks = -(-tokens // _BLOCK)
    order = (first[:, None] + torch.arange(key_blocks)) % key_blocks
    return (last - first + 1)[None, None].int(), order[None, None].int()


def _block_mask(
    spans: Sequence[TreeSpan], tree: Tensor, branch: Tensor, queries: Tensor
) -> BlockMask:
    """Of queries at these places of a row, on the device of its labels."""
    tokens, device = len(tree), tree.device
    count, order = blocks_seen(spans, tokens, queries)
    return BlockMask.from_kv_blocks(
        count.to(device),
        order.to(device),
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees(tree, branch, queries.to(device)),
        seq_lengths=(len(queries), tokens),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float) -> Tensor:
    attention = _compiled_attention if query.is_cuda else flex_attention
    attended: Tensor = attention(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
    return attended
