"""Attention in decoding: one new token per row.

All rows of a tree share the keys and values of its trunk, which are kept once. A row's own tokens
are its prompt and what it has written.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from loraqa.model.attention import States, repeat_heads
from loraqa.prompt.batch import TreeSpan


class PaddedRowAttention:
    """`RowAttention` on padded keys and values.

    The trunks of a layer lie in (trees, key heads, longest trunk, d), padded on the right. Each
    row's own keys and values lie in (rows, key heads, longest own, d), padded on the left, so that
    every row grows at its end.

    Args:
        spans: where the trees lie in the packed sequence.
        states: keys and values of the packed sequence. Decoding appends to them.
    """

    def __init__(self, spans: Sequence[TreeSpan], states: States) -> None:
        device = states[0][0].device
        trunks = [slice(span.start, span.branches_start) for span in spans]
        branches = [piece for span in spans for piece in span.branch_slices()]
        self._trunks = {
            layer: tuple(cut_and_pad(each, trunks, "right") for each in pair)
            for layer, pair in states.items()
        }
        self._own = {
            layer: tuple(cut_and_pad(each, branches, "left") for each in pair)
            for layer, pair in states.items()
        }
        counts = torch.tensor([len(span.branches) for span in spans])
        self._tree = torch.repeat_interleave(torch.arange(len(spans)), counts).to(device)
        trunk_seen = lengths_mask([span.trunk for span in spans], device)[self._tree]
        own_lengths = [length for span in spans for length in span.branches]
        own_seen = lengths_mask(own_lengths, device).flip(1)
        self._seen = torch.cat([trunk_seen, own_seen], dim=1)

    def add_token(self) -> None:
        """See `RowAttention`."""
        self._seen = pad(self._seen, (0, 1), value=True)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`: T is the number of rows, with one new token each."""
        new = (states[0].transpose(0, 1)[:, :, None] for states in (key, value))
        own = tuple(
            torch.cat([states, one], dim=2)
            for states, one in zip(self._own[layer], new, strict=True)
        )
        self._own = self._own | {layer: own}
        groups = query.shape[1] // key.shape[1]
        keys, values = (
            repeat_heads(torch.cat([trunk[self._tree], states], dim=2), groups)
            for trunk, states in zip(self._trunks[layer], own, strict=True)
        )
        attended = scaled_dot_product_attention(
            query[0].transpose(0, 1)[:, :, None],
            keys,
            values,
            attn_mask=self._seen[:, None, None],
            scale=scaling,
        )
        return attended[:, :, 0].transpose(0, 1)[None]

    def select(self, rows: Tensor) -> "PaddedRowAttention":
        """See `RowAttention`."""
        other = copy(self)
        other._tree, other._seen = self._tree[rows], self._seen[rows]
        other._own = {
            layer: tuple(states[rows] for states in pair) for layer, pair in self._own.items()
        }
        return other


def cut_and_pad(states: Tensor, pieces: Sequence[slice], side: str) -> Tensor:
    """Cut (key heads, T, d) into pieces: (pieces, key heads, longest, d), padded on one side.

    Padding repeats a token of the piece, and masks hide it. All pieces are taken at once, because
    on a GPU that is a single kernel.
    """
    starts, stops = torch.tensor([(piece.start, piece.stop) for piece in pieces]).t()[:, :, None]
    steps = torch.arange(int((stops - starts).max()))
    if side == "left":
        places = torch.maximum(stops - 1 - steps.flip(0), starts)
    else:
        places = torch.minimum(starts + steps, stops - 1)
    return states[:, places.to(states.device)].transpose(0, 1).contiguous()


def lengths_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return (rows, longest) booleans: true at the first `length` places of each row."""
    wanted = torch.tensor(lengths, device=device)
    return torch.arange(max(lengths), device=device) < wanted[:, None]
