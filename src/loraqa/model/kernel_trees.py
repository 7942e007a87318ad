"""Packed trees on a GPU: what each token of a row sees, for the kernels of `tree_kernels.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraqa.prompt.batch import TreeSpan

# Queries, and keys, that a program of a kernel has at hand at once.
BLOCK = 64


@dataclass(frozen=True)
class Queries:
    """Which tokens of a row of T ask, and what each of them sees.

    Attributes:
        places: (Q,) int32, where they lie in the row, in order.
        sees: (3, Q) int32: they see keys from the first up to, but without, the second, and from
            the third up to themselves.
        keys: (2, query blocks) int32, the first key that a block visits, and the end of those.
        queries: (2, key blocks) int32, the same the other way round.
    """

    places: Tensor
    sees: Tensor
    keys: Tensor
    queries: Tensor


class KernelTrees:
    """`PackedTrees` for a GPU.

    Args:
        sight: of `token_sight`, on the device.
        wanted: (S,) the tokens that are computed in the last layer, in order, on the device.
    """

    def __init__(self, sight: Tensor, wanted: Tensor) -> None:
        every = torch.arange(sight.shape[1], dtype=torch.int32, device=sight.device)
        self._every = queries_of(sight, every)
        self._wanted = queries_of(sight, wanted.int())

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`."""
        return _attend(query, key, value, self._every, scaling)

    def attend_from_wanted(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `PackedTrees.attend_from_wanted`."""
        return _attend(query, key, value, self._wanted, scaling)


def token_sight(spans: Sequence[TreeSpan], tokens: int) -> Tensor:
    """What is to be known of each token of a row of so many, (4, tokens) int32.

    Where its tree starts, where the trunk of that ends, where its own trunk or branch starts, and
    where its tree ends. Tokens behind the trees are trees of one token each.
    """
    pieces, lengths = [], []
    for span in spans:
        for piece in (slice(span.start, span.branches_start), *span.branch_slices()):
            pieces.append((span.start, span.branches_start, piece.start, span.end))
            lengths.append(piece.stop - piece.start)
    of_pieces = torch.tensor(pieces, dtype=torch.int32)
    trees = of_pieces.repeat_interleave(torch.tensor(lengths), dim=0)
    behind = torch.arange(spans[-1].end, tokens, dtype=torch.int32)
    alone = torch.stack([behind, behind + 1, behind, behind + 1], dim=1)
    return torch.cat([trees, alone]).t().contiguous()


def queries_of(sight: Tensor, places: Tensor) -> Queries:
    """What the tokens at these places (Q,) of a row see, and what blocks of them visit."""
    tokens, count = sight.shape[1], len(places)
    starts, ends = sight[0], sight[3]
    of_keys, of_queries = (
        torch.arange(0, each, BLOCK, dtype=torch.int32, device=sight.device)
        for each in (tokens, count)
    )
    last_keys = (of_keys + BLOCK - 1).clamp(max=tokens - 1)
    last_queries = (of_queries + BLOCK - 1).clamp(max=count - 1)
    return Queries(
        places,
        sight[:3, places].contiguous(),
        torch.stack([starts[places[of_queries]], places[last_queries] + 1]),
        torch.searchsorted(places, torch.stack([of_keys, ends[last_keys]]), out_int32=True),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, queries: Queries, scaling: float) -> Tensor:
    # Triton comes with PyTorch where that is for a GPU, and not elsewhere.
    from loraqa.model.tree_kernels import attend

    return attend(query, key, value, queries, scaling)
