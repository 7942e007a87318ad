"""Decoding sessions: unfinished answers, one row each, one more token per row at each step.

`Runner.prefill` starts a session. All rows of a tree share the keys and values of its trunk.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel

from loraqa.lora.activated import acting_on
from loraqa.model.attention import RowAttention
from loraqa.prompt.batch import collate_padded
from loraqa.prompt.tree import Tree


class DecodingSession(Protocol):
    """Unfinished answers; at first one row per branch, in the order of trees and branches."""

    def advance(self, tokens: Tensor) -> Tensor:
        """Append a token to every row, (rows,). Return the next logits, (rows, vocabulary)."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep these rows, (rows',), in this order; a row named twice is duplicated."""
        ...

    def fork(self, rows: Tensor) -> "DecodingSession":
        """Return a session with these rows, (rows',). This session does not change."""
        ...


class TreeSession:
    """Decoding over trees.

    Args:
        model: the model.
        rows: the attention to the prompts' keys and values.
        lengths: tokens of each row so far, trunk included.
    """

    def __init__(self, model: PreTrainedModel, rows: RowAttention, lengths: Sequence[int]) -> None:
        self._model = model
        self._rows = rows
        self._positions = torch.tensor(lengths, device=model.device)

    @torch.no_grad()
    def advance(self, tokens: Tensor) -> Tensor:
        """See `DecodingSession`."""
        self._rows.add_token()
        logits: Tensor = self._model(
            input_ids=tokens[None],
            position_ids=self._positions[None],
            tree_attention=self._rows,
            use_cache=False,
        ).logits
        self._positions = self._positions + 1
        return logits[0]

    def select(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._positions = self._positions[rows]
        self._rows = self._rows.select(rows)

    def fork(self, rows: Tensor) -> "TreeSession":
        """See `DecodingSession`."""
        other = copy(self)
        other.select(rows)
        return other


class PaddedSession:
    """Decoding over padded rows with the model's own cache. Each row has its own context."""

    _cache: Cache

    def __init__(self, model: PreTrainedModel, mask: Tensor, positions: Tensor) -> None:
        self._model, self._mask, self._positions = model, mask, positions

    @classmethod
    def prefill(
        cls, model: PreTrainedModel, trees: Sequence[Tree]
    ) -> tuple["PaddedSession", Tensor]:
        """See `Runner.prefill`."""
        batch, device = collate_padded(trees, pad_id=0), model.device
        session = cls(model, batch.attention_mask.to(device), batch.position_ids.to(device))
        with acting_on(batch.in_branch.to(device)):
            return session, session._forward(batch.input_ids.to(device), cache=None)

    def advance(self, tokens: Tensor) -> Tensor:
        """See `DecodingSession`."""
        self._mask = pad(self._mask, (0, 1), value=1)
        self._positions = self._positions[:, -1:] + 1
        return self._forward(tokens[:, None], self._cache)

    def select(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        self._cache.reorder_cache(rows)

    def fork(self, rows: Tensor) -> "PaddedSession":
        """See `DecodingSession`."""
        other = copy(self)
        other._cache = deepcopy(self._cache)
        other.select(rows)
        return other

    @torch.no_grad()
    def _forward(self, ids: Tensor, cache: Cache | None) -> Tensor:
        output: Any = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=cache,
            logits_to_keep=1,
            use_cache=True,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits


class RecomputingSession:
    """Decoding that keeps nothing but token ids and recomputes whole rows at every step.

    Rows are padded on the right. A causal model does not look there, so this is exact for any
    causal model, whatever state the model would keep.
    """

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, lengths: Tensor, in_branch: Tensor
    ) -> None:
        self._model, self._input_ids, self._lengths = model, input_ids, lengths
        self._in_branch = in_branch

    @classmethod
    def prefill(
        cls, model: PreTrainedModel, trees: Sequence[Tree]
    ) -> tuple["RecomputingSession", Tensor]:
        """See `Runner.prefill`."""
        batch, device = collate_padded(trees, pad_id=0, side="right"), model.device
        lengths = batch.attention_mask.sum(dim=1)
        rows = batch.input_ids.to(device), lengths.to(device), batch.in_branch.to(device)
        session = cls(model, *rows)
        return session, session._forward()

    def advance(self, tokens: Tensor) -> Tensor:
        """See `DecodingSession`."""
        longer = pad(self._input_ids, (0, 1))
        self._input_ids = longer.scatter(1, self._lengths[:, None], tokens[:, None])
        self._in_branch = pad(self._in_branch, (0, 1), value=True)
        self._lengths = self._lengths + 1
        return self._forward()

    def select(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._input_ids, self._lengths = self._input_ids[rows], self._lengths[rows]
        self._in_branch = self._in_branch[rows]

    def fork(self, rows: Tensor) -> "RecomputingSession":
        """See `DecodingSession`."""
        other = copy(self)
        other.select(rows)
        return other

    @torch.no_grad()
    def _forward(self) -> Tensor:
        with acting_on(self._in_branch):
            logits: Tensor = self._model(input_ids=self._input_ids, use_cache=False).logits
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self._lengths - 1]
