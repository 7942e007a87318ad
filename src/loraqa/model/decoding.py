"""Decoding sessions: keys and values kept, one more token per row at each step.

A row is one answer being written. All rows of a tree share the keys and values of its trunk,
which are computed and kept once, however many answers are tried.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel

from loraqa.model.attention import PackedTrees, Rows
from loraqa.model.choose_rows import choose_rows
from loraqa.model.last_layer import wanted_logits
from loraqa.prompt.batch import TreeBatch, collate_padded
from loraqa.prompt.tree import Tree


class DecodingSession(Protocol):
    """Answers in progress, one row each; at first one per branch, in the order of the trees."""

    def prefill(self) -> Tensor:
        """Compute the prompts. Returns the next token's logits, (rows, vocabulary)."""
        ...

    def advance(self, tokens: Tensor) -> Tensor:
        """Append a token to every row, (rows,). Returns the next logits, (rows, vocabulary)."""
        ...

    def select(self, rows: Tensor) -> None:
        """Go on with these rows in this order, (rows',). A row named twice is forked."""
        ...

    def branch_off(self, rows: Tensor) -> "DecodingSession":
        """A session that goes on with these rows, (rows',); this one stays where it is."""
        ...


class TreeSession:
    """Decoding over trees: `advance` and `select` after one `prefill`."""

    _rows: Rows

    def __init__(self, model: PreTrainedModel, batch: TreeBatch, trees: PackedTrees) -> None:
        self._model = model
        self._batch = batch
        self._trees = trees
        self._positions = torch.tensor(batch.path_lengths, device=model.device)

    @torch.no_grad()
    def prefill(self) -> Tensor:
        """See `DecodingSession`."""
        prompts = _RecordedTrees(self._trees)
        logits = wanted_logits(self._model, self._batch, prompts)
        self._rows = choose_rows(self._batch.spans, prompts.states)
        return logits[: len(self._positions)]

    @torch.no_grad()
    def advance(self, tokens: Tensor) -> Tensor:
        """See `DecodingSession`."""
        self._rows.make_room()
        logits: Tensor = self._model(
            input_ids=tokens[None],
            position_ids=self._positions[None],
            trees=self._rows,
            use_cache=False,
        ).logits
        self._positions = self._positions + 1
        return logits[0]

    def select(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._positions = self._positions[rows]
        self._rows = self._rows.select(rows)

    def branch_off(self, rows: Tensor) -> "TreeSession":
        """See `DecodingSession`."""
        other = copy(self)
        other.select(rows)
        return other


class PaddedSession:
    """Decoding over padded rows with the model's own cache, each row with its own context."""

    _cache: Cache

    def __init__(self, model: PreTrainedModel, trees: Sequence[Tree]) -> None:
        self._model = model
        batch = collate_padded(trees, pad_id=0)
        self._input_ids = batch.input_ids.to(model.device)
        self._mask = batch.attention_mask.to(model.device)
        self._positions = batch.position_ids.to(model.device)

    @torch.no_grad()
    def prefill(self) -> Tensor:
        """See `DecodingSession`."""
        return self._forward(self._input_ids, self._positions, None)

    @torch.no_grad()
    def advance(self, tokens: Tensor) -> Tensor:
        """See `DecodingSession`."""
        self._mask = pad(self._mask, (0, 1), value=1)
        self._positions = self._positions[:, -1:] + 1
        return self._forward(tokens[:, None], self._positions, self._cache)

    def select(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        self._cache.reorder_cache(rows)

    def branch_off(self, rows: Tensor) -> "PaddedSession":
        """See `DecodingSession`."""
        other = copy(self)
        other._cache = deepcopy(self._cache)
        other.select(rows)
        return other

    def _forward(self, ids: Tensor, positions: Tensor, cache: Cache | None) -> Tensor:
        output: Any = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
            use_cache=True,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits


class RecomputingSession:
    """Decoding that keeps nothing but ids, and computes whole rows at every step.

    Rows are padded on the right, where a causal model does not look from the row's own last token;
    so this is exact for any, whatever it would keep of a row.
    """

    def __init__(self, model: PreTrainedModel, trees: Sequence[Tree]) -> None:
        self._model = model
        batch = collate_padded(trees, pad_id=0, side="right")
        self._input_ids = batch.input_ids.to(model.device)
        self._lengths = batch.attention_mask.sum(dim=1).to(model.device)

    @torch.no_grad()
    def prefill(self) -> Tensor:
        """See `DecodingSession`."""
        logits: Tensor = self._model(input_ids=self._input_ids, use_cache=False).logits
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self._lengths - 1]

    def advance(self, tokens: Tensor) -> Tensor:
        """See `DecodingSession`."""
        longer = pad(self._input_ids, (0, 1))
        self._input_ids = longer.scatter(1, self._lengths[:, None], tokens[:, None])
        self._lengths = self._lengths + 1
        return self.prefill()

    def select(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._input_ids, self._lengths = self._input_ids[rows], self._lengths[rows]

    def branch_off(self, rows: Tensor) -> "RecomputingSession":
        """See `DecodingSession`."""
        other = copy(self)
        other.select(rows)
        return other


@dataclass
class _RecordedTrees:
    """Packed trees of which every layer's keys and values are remembered."""

    trees: PackedTrees
    states: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        self.states[layer] = key[0], value[0]
        return self.trees.attend(layer, query, key, value, scaling)

    def attend_from_wanted(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        self.states[layer] = key[0], value[0]
        return self.trees.attend_from_wanted(layer, query, key, value, scaling)
