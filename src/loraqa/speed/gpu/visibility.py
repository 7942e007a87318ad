"""Which tokens each token of a packed sequence sees, as the kernels of `kernels.py` read it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraqa.prompt.batch import TreeSpan

# Queries, and keys, that one program of a kernel holds at once.
BLOCK = 64


@dataclass(frozen=True)
class Queries:
    """The tokens of a packed sequence that are queries, and the keys that each of them sees.

    Attributes:
        places: (Q,) int32, the queries' places in the sequence, in order.
        sees: (3, Q) int32. A query sees the keys from the first number up to, but without, the
            second, and from the third up to itself.
        keys: (2, query blocks) int32, the first key that a block of queries visits, and the end.
        queries: (2, key blocks) int32, the first query that a block of keys visits, and the end.
    """

    places: Tensor
    sees: Tensor
    keys: Tensor
    queries: Tensor


def token_sight(spans: Sequence[TreeSpan], tokens: int) -> Tensor:
    """Return four places for each token of a packed sequence, (4, tokens) int32.

    They are: where its tree starts, where the trunk of the tree ends, where its own trunk or branch
    starts, and where its tree ends. Padding behind the trees counts as trees of one token each.
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
    """Return what the tokens at these places (Q,) see, and which blocks visit which."""
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
