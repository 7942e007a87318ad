"""Attention in decoding on a CPU, by `native/rows.c`, without padding or masks."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from loraqa.model.attention import States
from loraqa.model.rows import cut_and_pad
from loraqa.model.runner import Runner, TreeRunner, Use
from loraqa.prompt.batch import TreeSpan
from loraqa.speed.cpu import native
from loraqa.speed.trial import check_rows

# Keys and values grow by so many tokens at a time, because growing copies them.
SPARE_TOKENS = 16


def applies(runner: Runner, uses: frozenset[Use]) -> bool:
    """Return whether the runner will write answers, with a dtype that the kernel knows."""
    model = runner.model
    writes = isinstance(runner, TreeRunner) and "answering" in uses
    return writes and native.supports(model.device, model.dtype)


def wrap(runner: TreeRunner) -> Runner:
    """Compare the kernel with plain rows, then let the runner use it."""
    check_rows(CompiledRowAttention, runner.model.device, runner.model.dtype)
    return replace(runner, make_row_attention=CompiledRowAttention)


class CompiledRowAttention:
    """`RowAttention` by a C kernel that reads keys and values where they lie.

    All trunks lie one after another in (key heads, tokens, d). The rows' own keys and values lie in
    (rows, key heads, longest own + room, d), padded on the left, so that all rows grow at the same
    place.
    """

    def __init__(self, spans: Sequence[TreeSpan], prompts: States) -> None:
        branches = [piece for span in spans for piece in span.branch_slices()]
        self._own = {
            layer: tuple(cut_and_pad(states, branches, "left") for states in pair)
            for layer, pair in prompts.items()
        }
        trunks = [slice(span.start, span.branches_start) for span in spans]
        self._trunks = {
            layer: tuple(_joined(states, trunks) for states in pair)
            for layer, pair in prompts.items()
        }
        lengths = [length for span in spans for length in span.branches]
        self._end = max(lengths)
        self._own_starts = _places(self._end - length for length in lengths)
        ends = list(accumulate(span.trunk for span in spans))
        seen = [(end - span.trunk, end) for span, end in zip(spans, ends, strict=True)]
        of_rows = [trunk for span, trunk in zip(spans, seen, strict=True) for _ in span.branches]
        self._trunk_starts = _places(start for start, _ in of_rows)
        self._trunk_ends = _places(end for _, end in of_rows)

    def add_token(self) -> None:
        """See `RowAttention`."""
        self._end += 1
        if self._end > self._own[0][0].shape[2]:
            self._own = {
                layer: tuple(pad(states, (0, 0, 0, SPARE_TOKENS)) for states in pair)
                for layer, pair in self._own.items()
            }

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`: T is the number of rows, with one new token each.

        Raises:
            ValueError: values are not as wide as keys and queries.
        """
        if key.shape != value.shape or key.shape[-1] != query.shape[-1]:
            raise ValueError("queries, keys and values differ in their width")
        own, trunks = self._own[layer], self._trunks[layer]
        for states, new in zip(own, (key, value), strict=True):
            states[:, :, self._end - 1] = new[0].transpose(0, 1)
        queries = query[0].transpose(0, 1).contiguous()
        attended = torch.empty_like(queries)
        rows, heads, size = queries.shape
        key_heads, tokens, _ = trunks[0].shape
        room = own[0].shape[2]
        native.call_with_memory(
            "attend_rows",
            query.dtype,
            *(queries, *trunks, *own, self._trunk_starts, self._trunk_ends, self._own_starts),
            *(attended, self._end, rows, heads, key_heads, tokens, room, size, float(scaling)),
        )
        return attended.transpose(0, 1)[None]

    def select(self, rows: Tensor) -> "CompiledRowAttention":
        """See `RowAttention`."""
        other = copy(self)
        other._own = {
            layer: tuple(states[rows] for states in pair) for layer, pair in self._own.items()
        }
        other._own_starts = self._own_starts[rows]
        other._trunk_starts, other._trunk_ends = self._trunk_starts[rows], self._trunk_ends[rows]
        return other


def _joined(states: Tensor, pieces: Sequence[slice]) -> Tensor:
    """Cut (key heads, T, d) into pieces and put them one after another."""
    return torch.cat([states[:, piece] for piece in pieces], dim=1)


def _places(places: Iterable[int]) -> Tensor:
    return torch.tensor(list(places), device="cpu")
