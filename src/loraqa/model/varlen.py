"""Attention over trees on a GPU by variable-length kernels, which need no compilation.

The row holds all trunks first, then all branches, then padding. So both kinds of attention are
segments of it, one after another: trunks and branches see themselves, causally; the branches of a
tree see its trunk.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from loraqa.model.attention import States
from loraqa.model.buckets import bucket
from loraqa.model.flash import Part, attend_parts
from loraqa.model.varlen_rows import VarlenRows
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.tree import Tree

# The length that no segment exceeds is a multiple of the height of the kernels' blocks: they are
# launched for as many of them in each segment.
_LIMIT = 128
# Numbers of segments are multiples of these, so that graphs of few kinds are made.
_OWN_SEGMENTS, _TRUNK_SEGMENTS = 64, 32


@dataclass(frozen=True)
class VarlenBatch:
    """Trees in one row of T tokens, of which S predict a token, as tensors of one device.

    Attributes:
        input_ids, position_ids: (1, T).
        supervised: (S,) indices into T, in the order of trees and branches, then of padding.
        targets: (n,) the token to predict at the first n of them.
        own: (segments + 1,) edges of the trunks, of the branches, and of padding.
        wanted_of_own: as many edges: the supervised tokens in each, as places in `supervised`.
        of_trees: edges of the trunks, which see nothing here, of the branches of each tree, and of
            padding.
        trunks: as many edges: the trunk that each of those sees.
        wanted_of_trees: as many edges: the supervised tokens in each.
        limit: no segment is longer.
        trunk_lengths, branch_lengths: of the trees, in tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    supervised: Tensor
    targets: Tensor
    own: Tensor
    wanted_of_own: Tensor
    of_trees: Tensor
    trunks: Tensor
    wanted_of_trees: Tensor
    limit: int
    trunk_lengths: tuple[int, ...]
    branch_lengths: tuple[tuple[int, ...], ...]

    @property
    def path_lengths(self) -> list[int]:
        """Of each branch with its trunk, in tokens."""
        trees = zip(self.trunk_lengths, self.branch_lengths, strict=True)
        return [trunk + length for trunk, branches in trees for length in branches]

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> "VarlenBatch":
        """The same on a device."""
        return self.with_tensors({name: t.to(device) for name, t in self.tensors().items()})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "VarlenBatch":
        """The same with other ones in place of its `tensors`."""
        changes: dict[str, Any] = {**tensors}
        return replace(self, **changes)


def collate_varlen(
    trees: Sequence[Tree], tokens: int | None = None, wanted: int | None = None
) -> VarlenBatch:
    """Lay out trees in a row of `tokens` with `wanted` supervised ones, or without padding.

    A branch without an answer predicts at the end of its prompt.
    """
    packed = collate_trees(trees)
    trunks = [span.trunk for span in packed.spans]
    branches = [span.branches for span in packed.spans]
    real, predicting = packed.input_ids.shape[1], len(packed.supervised)
    tokens, wanted = tokens or real, wanted or predicting
    places = _trunks_first([(span.start, span.branches_start, span.end) for span in packed.spans])
    behind = (0, tokens - real)
    limit = bucket(max([*trunks, *map(sum, branches)]), _LIMIT)
    predictions = [[max(len(branch.answer), 1) for branch in tree.branches] for tree in trees]
    padding, unseen = _chunks(tokens - real, limit), _chunks(tokens - sum(trunks), limit)
    repeated = _chunks(wanted - predicting, limit)
    own, wanted_of_own = _edges(
        [
            *((trunk, 0) for trunk in trunks),
            *zip(_flat(branches), _flat(predictions), strict=True),
            *((chunk, 0) for chunk in padding),
            *((0, chunk) for chunk in repeated),
        ],
        _OWN_SEGMENTS,
    )
    of_trees, seen, wanted_of_trees = _edges(
        [
            *((trunk, 0, 0) for trunk in trunks),
            *zip(map(sum, branches), trunks, map(sum, predictions), strict=True),
            *((chunk, 0, 0) for chunk in padding),
            *((0, chunk, 0) for chunk in unseen),
            *((0, 0, chunk) for chunk in repeated),
        ],
        _TRUNK_SEGMENTS,
    )
    return VarlenBatch(
        pad(packed.input_ids[:, places], behind),
        pad(packed.position_ids[:, places], behind),
        pad(places.argsort()[packed.supervised], (0, wanted - predicting), value=tokens - 1),
        packed.targets,
        *(own, wanted_of_own, of_trees, seen, wanted_of_trees),
        limit,
        tuple(trunks),
        tuple(branches),
    )


class VarlenTrees:
    """`PackedTrees` for a GPU, of a batch that lies there."""

    def __init__(self, batch: VarlenBatch) -> None:
        limits = batch.limit, batch.limit
        self._every = (
            Part(batch.own, batch.own, *limits, causal=True),
            Part(batch.of_trees, batch.trunks, *limits),
        )
        self._wanted = (
            Part(batch.wanted_of_own, batch.own, *limits, causal=True),
            Part(batch.wanted_of_trees, batch.trunks, *limits),
        )
        self._lengths = batch.trunk_lengths, batch.branch_lengths

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`."""
        return _attend(query, key, value, self._every, scaling)

    def attend_from_wanted(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `WantedTrees.attend_from_wanted`."""
        return _attend(query, key, value, self._wanted, scaling)

    def rows(self, prompts: States) -> VarlenRows:
        """See `PackedTrees.rows`."""
        return VarlenRows(*self._lengths, prompts)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, parts: tuple[Part, Part], scaling: float
) -> Tensor:
    # Unlike that of indexing, its gradient is no copy.
    by_token = [each.squeeze(0).transpose(0, 1) for each in (query, key, value)]
    attended = attend_parts(by_token[0], by_token[1], by_token[2], *parts, scaling)
    return attended.transpose(0, 1)[None]


def _trunks_first(trees: Sequence[tuple[int, int, int]]) -> Tensor:
    """Places of the trees' tokens, trunks before branches, from where each starts and ends."""
    trunks = (torch.arange(start, middle) for start, middle, _ in trees)
    branches = (torch.arange(middle, end) for _, middle, end in trees)
    return torch.cat([*trunks, *branches])


def _chunks(count: int, limit: int) -> list[int]:
    """`count` in pieces of at most `limit`."""
    return [min(limit, count - start) for start in range(0, count, limit)]


def _flat(lists: Iterable[Iterable[int]]) -> list[int]:
    return [each for one in lists for each in one]


def _edges(segments: Sequence[tuple[int, ...]], multiple: int) -> list[Tensor]:
    """Edges of segments of these lengths, a tensor for each of their kinds, int32.

    Empty segments at the end fill up their number.
    """
    count = -(-len(segments) // multiple) * multiple
    edges: NDArray[np.int32] = np.zeros((count + 1, len(segments[0])), np.int32)
    np.cumsum(segments, axis=0, out=edges[1 : len(segments) + 1])
    edges[len(segments) + 1 :] = edges[len(segments)]
    return [torch.from_numpy(kind) for kind in np.ascontiguousarray(edges.T)]
