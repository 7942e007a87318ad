"""Attention in decoding on a GPU: nothing is padded, and a trunk's keys are read once."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loraqa.model.attention import States
from loraqa.model.runner import Runner, TreeRunner, Use
from loraqa.prompt.batch import TreeSpan
from loraqa.speed.gpu.flash import Segments, attend_segments, merge
from loraqa.speed.trial import check_rows

# Keys and values grow by so many tokens at a time, because growing copies them.
SPARE_TOKENS = 16

_Places = NDArray[np.int64]


def applies(runner: Runner, uses: frozenset[Use]) -> bool:
    """Return whether the runner will write answers on a GPU in bf16."""
    model = runner.model
    writes = isinstance(runner, TreeRunner) and "answering" in uses
    return writes and model.device.type == "cuda" and model.dtype == torch.bfloat16


def wrap(runner: TreeRunner) -> Runner:
    """Compare the kernels with plain rows, then let the runner use them."""
    check_rows(VarlenRowAttention, runner.model.device, runner.model.dtype)
    return replace(runner, make_row_attention=VarlenRowAttention)


class VarlenRowAttention:
    """`RowAttention` by kernels for segments of different lengths.

    All trunks lie one after another in (tokens, key heads, d). So do the rows' own keys and values,
    with room behind each row.
    """

    _starts: _Places
    _lengths: _Places
    _room: int
    _own_edges: Tensor
    _row_edges: Tensor

    def __init__(self, spans: Sequence[TreeSpan], prompts: States) -> None:
        self._device = prompts[0][0].device
        by_token: dict[int, tuple[Tensor, ...]] = {
            layer: tuple(states.transpose(0, 1) for states in pair)
            for layer, pair in prompts.items()
        }
        trunks = [np.arange(span.start, span.branches_start) for span in spans]
        self._trunks = _taken(by_token, self._on_device(np.concatenate(trunks)))
        lengths = [span.trunk for span in spans]
        self._trunk_edges, self._longest_trunk = self._edges(lengths), max(lengths)
        self._tree = np.repeat(np.arange(len(spans)), [len(span.branches) for span in spans])
        branches = [piece for span in spans for piece in span.branch_slices()]
        starts = np.array([piece.start for piece in branches])
        self._keep(by_token, starts, np.array([piece.stop for piece in branches]) - starts)
        self._sort_by_tree()

    def add_token(self) -> None:
        """See `RowAttention`."""
        if not self._room:
            self._keep(self._own, self._starts, self._lengths)
        self._room -= 1
        self._new = self._on_device(self._starts + self._lengths)
        self._lengths = self._lengths + 1
        self._own_segments = Segments(
            # 2, because the kernel returns sums in another layout for one query per segment.
            *(self._row_edges, self._own_edges, 2, int(self._lengths.max())),
            used=self._on_device(self._lengths.astype(np.int32)),
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`: T is the number of rows, with one new token each."""
        queries, *new = (each[0].transpose(0, 1) for each in (query, key, value))
        for states, token in zip(self._own[layer], new, strict=True):
            states.index_copy_(0, self._new, token)
        own_key, own_value = self._own[layer]
        trunk_key, trunk_value = self._trunks[layer]
        of_own, own_sums = attend_segments(queries, own_key, own_value, self._own_segments, scaling)
        of_trunk, trunk_sums = attend_segments(
            queries[self._by_tree], trunk_key, trunk_value, self._trunk_segments, scaling
        )
        back = self._inverse_order
        attended = merge(of_own, own_sums, of_trunk[back], trunk_sums[:, back])
        return attended.transpose(0, 1)[None]

    def select(self, rows: Tensor) -> "VarlenRowAttention":
        """See `RowAttention`."""
        chosen = rows.cpu().numpy()
        other = copy(self)
        other._tree = self._tree[chosen]
        other._keep(self._own, self._starts[chosen], self._lengths[chosen])
        other._sort_by_tree()
        return other

    def _keep(
        self, states: dict[int, tuple[Tensor, ...]], starts: _Places, lengths: _Places
    ) -> None:
        """Copy each row's own tokens, given by start and length, and leave room behind them."""
        edges = np.concatenate([[0], np.cumsum(lengths + SPARE_TOKENS)])
        row = np.repeat(np.arange(len(lengths)), lengths + SPARE_TOKENS)
        within = np.arange(edges[-1]) - edges[row]
        # Any token fills the room.
        places = starts[row] + np.minimum(within, lengths[row] - 1)
        self._own = _taken(states, self._on_device(places))
        self._starts, self._lengths, self._room = edges[:-1], lengths, SPARE_TOKENS
        self._own_edges = self._on_device(edges.astype(np.int32))
        self._row_edges = torch.arange(len(lengths) + 1, dtype=torch.int32, device=self._device)

    def _sort_by_tree(self) -> None:
        """Sort the rows by tree, so that each trunk's rows are one segment of queries."""
        order = np.argsort(self._tree, kind="stable")
        counts = np.bincount(self._tree, minlength=len(self._trunk_edges) - 1)
        self._by_tree, self._inverse_order = (
            self._on_device(order),
            self._on_device(np.argsort(order)),
        )
        self._trunk_segments = Segments(
            # See `add_token`.
            *(self._edges(counts), self._trunk_edges, max(int(counts.max()), 2)),
            self._longest_trunk,
        )

    def _edges(self, lengths: Sequence[int] | _Places) -> Tensor:
        return self._on_device(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))

    def _on_device(self, numbers: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)


def _taken(states: dict[int, tuple[Tensor, ...]], places: Tensor) -> dict[int, tuple[Tensor, ...]]:
    """Take the keys and values of some tokens in every layer."""
    return {
        layer: tuple(each.index_select(0, places) for each in pair)
        for layer, pair in states.items()
    }
