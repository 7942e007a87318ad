"""Attention in decoding on any device, with trunks of similar length in one tensor.

Little is padded, and one matrix product multiplies all rows of a tree with its trunk.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from loraqa.model.attention import States
from loraqa.model.rows import PaddedRowAttention, cut_and_pad, lengths_mask
from loraqa.model.runner import Runner, TreeRunner, Use
from loraqa.prompt.batch import TreeSpan

# Trunks are grouped if the longest is at most this many times the shortest.
_LENGTH_RATIO = 1.3
# Keys and values grow by so many tokens at a time, because growing copies them.
SPARE_TOKENS = 16


def applies(runner: Runner, uses: frozenset[Use]) -> bool:
    """Return whether the runner will write answers, and no kernel for rows works here."""
    plain = isinstance(runner, TreeRunner) and runner.make_row_attention is PaddedRowAttention
    return plain and "answering" in uses


def wrap(runner: TreeRunner) -> Runner:
    """Let the runner use grouped rows."""
    return replace(runner, make_row_attention=GroupedRowAttention)


class GroupedRowAttention:
    """`RowAttention` by tensor operations.

    The rows' own keys and values lie in (rows, key heads, longest own + room, d), padded on the
    left, so that all rows grow at the same place.
    """

    def __init__(self, spans: Sequence[TreeSpan], prompts: States) -> None:
        device = prompts[0][0].device
        branches = [piece for span in spans for piece in span.branch_slices()]
        self._own = {
            layer: tuple(cut_and_pad(states, branches, "left") for states in pair)
            for layer, pair in prompts.items()
        }
        own_lengths = [length for span in spans for length in span.branches]
        self._own_seen = lengths_mask(own_lengths, device).flip(1)
        trunks = [span.trunk for span in spans for _ in span.branches]
        self._trunk_seen = lengths_mask(trunks, device)
        self._trunks = _trunks(spans, prompts)

    def add_token(self) -> None:
        """See `RowAttention`."""
        self._own_seen = pad(self._own_seen, (0, 1), value=True)
        if self._own_seen.shape[1] > self._own[0][0].shape[2]:
            self._own = {
                layer: tuple(pad(states, (0, 0, 0, SPARE_TOKENS)) for states in pair)
                for layer, pair in self._own.items()
            }
        seen = torch.cat([self._trunk_seen, self._own_seen], dim=1)
        # In each layer one pass over the scores scales them and masks the padding.
        precise = torch.promote_types(self._own[0][0].dtype, torch.float32)
        self._bias = torch.where(seen, 0.0, -torch.inf).to(precise)[:, None, None]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`: T is the number of rows, with one new token each."""
        rows, heads, size = query.shape[2], query.shape[1], query.shape[3]
        end = self._own_seen.shape[1]
        for states, new in zip(self._own[layer], (key, value), strict=True):
            states[:, :, end - 1] = new[0].transpose(0, 1)
        own_key, own_value = (states[:, :, :end] for states in self._own[layer])

        queries = query[0].transpose(0, 1).reshape(rows, key.shape[1], -1, size)
        longest = self._trunk_seen.shape[1]
        scores = queries.new_zeros(*queries.shape[:3], longest + end)
        for trunks in self._trunks:
            scores[trunks.rows, ..., : trunks.longest] = trunks.scores(layer, queries)
        scores[..., longest:] = queries @ own_key.transpose(2, 3)
        scores = torch.add(self._bias, scores, alpha=scaling)
        weights = scores.softmax(dim=-1).to(query.dtype)
        attended = weights[..., longest:] @ own_value
        for trunks in self._trunks:
            attended[trunks.rows] += trunks.attended(layer, weights)
        return attended.reshape(rows, heads, size).transpose(0, 1)[None]

    def select(self, rows: Tensor) -> "GroupedRowAttention":
        """See `RowAttention`."""
        selected = (trunks.select(rows, len(self._own_seen)) for trunks in self._trunks)
        other = copy(self)
        other._own = {
            layer: tuple(states[rows] for states in pair) for layer, pair in self._own.items()
        }
        other._own_seen = self._own_seen[rows]
        other._trunks = [trunks for trunks in selected if len(trunks.rows)]
        longest = max(trunks.longest for trunks in other._trunks)
        other._trunk_seen = self._trunk_seen[rows, :longest]
        return other


@dataclass(frozen=True)
class _Trunks:
    """R trunks of similar length, and the n rows that see them.

    Attributes:
        states: keys and values of each layer, (R, key heads, longest, d), padded on the right.
        rows: (n,) indices of these rows among all rows.
        trunk: (n,) index of each row's trunk.
    """

    states: Mapping[int, tuple[Tensor, ...]]
    rows: Tensor
    trunk: Tensor

    @cached_property
    def longest(self) -> int:
        """The number of tokens of the longest trunk."""
        return next(iter(self.states.values()))[0].shape[2]

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """Multiply queries with the trunks' keys: (n, key heads, groups, longest).

        Args:
            layer: the layer of the keys.
            queries: (N, key heads, groups, d), of all N rows.
        """
        key, _ = self.states[layer]
        return self._times(queries[self.rows], key.transpose(2, 3))

    def attended(self, layer: int, weights: Tensor) -> Tensor:
        """Sum the trunks' values: (n, key heads, groups, d).

        Args:
            layer: the layer of the values.
            weights: (N, key heads, groups, longest or more), of all N rows.
        """
        _, value = self.states[layer]
        return self._times(weights[self.rows, ..., : self.longest], value)

    def select(self, rows: Tensor, count: int) -> "_Trunks":
        """Return the trunks that some of all `count` rows see, and these rows."""
        numbers = torch.full((count,), -1, device=rows.device)
        numbers[self.rows] = torch.arange(len(self.rows), device=rows.device)
        chosen = numbers[rows]
        kept = (chosen >= 0).nonzero()[:, 0]
        needed, trunk = torch.unique(self.trunk[chosen[kept]], return_inverse=True)
        states = self.states
        if len(needed) < len(next(iter(states.values()))[0]):
            states = {layer: tuple(s[needed] for s in pair) for layer, pair in states.items()}
        return _Trunks(states, kept, trunk)

    def _times(self, rows: Tensor, states: Tensor) -> Tensor:
        """Multiply each row's (key heads, groups, m) with its trunk's (key heads, m, n)."""
        place, siblings = self._places
        key_heads, groups, width = rows.shape[1:]
        placed = rows.new_zeros(len(states), siblings, key_heads, groups, width)
        placed[self.trunk, place] = rows
        side_by_side = placed.transpose(1, 2).reshape(len(states), key_heads, -1, width)
        product = side_by_side @ states
        apart = product.view(len(states), key_heads, siblings, groups, -1)
        return apart.transpose(1, 2)[self.trunk, place]

    @cached_property
    def _places(self) -> tuple[Tensor, int]:
        """Number the rows of each trunk; return the numbers and the most rows that a trunk has.

        With these numbers one product multiplies all rows of a trunk with it.
        """
        order = self.trunk.argsort(stable=True)
        counts = torch.bincount(self.trunk)
        first = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - first[self.trunk[order]]
        return place, int(counts.max())


def _trunks(spans: Sequence[TreeSpan], prompts: States) -> list[_Trunks]:
    """Bring trunks of similar length together."""
    device = prompts[0][0].device
    edges = [0, *accumulate(len(span.branches) for span in spans)]
    found = []
    for trees in _group_by_length([span.trunk for span in spans]):
        pieces = [slice(spans[tree].start, spans[tree].branches_start) for tree in trees]
        rows = [torch.arange(edges[tree], edges[tree + 1], device=device) for tree in trees]
        counts = torch.tensor([len(each) for each in rows], device=device)
        trunk = torch.repeat_interleave(torch.arange(len(trees), device=device), counts)
        states = {
            layer: tuple(cut_and_pad(states, pieces, "right") for states in pair)
            for layer, pair in prompts.items()
        }
        found.append(_Trunks(states, torch.cat(rows), trunk))
    return found


def _group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group the indices of similar lengths (see `_LENGTH_RATIO`)."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or lengths[place] > _LENGTH_RATIO * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(place)
    return groups
