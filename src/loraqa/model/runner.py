"""Running a model over trees, or over padded rows where the model cannot compute trees.

Every runner counts the tokens of a batch, computes logits and gradients at supervised tokens for
training, and starts a decoding session for answering. `choose_runner` picks the runner of a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraqa.lora.activated import acting_on
from loraqa.lora.flat import FlatAdapter
from loraqa.model.attention import (
    NOT_REPLACED,
    TREE_ATTENTION,
    RowAttention,
    States,
    TreeAttention,
    UnsupportedAttentionError,
)
from loraqa.model.loss import Gradients, accumulate
from loraqa.model.rows import PaddedRowAttention
from loraqa.model.session import DecodingSession, PaddedSession, RecomputingSession, TreeSession
from loraqa.model.trees import PackedTreeAttention
from loraqa.prompt.batch import PaddedBatch, TreeBatch, TreeSpan, collate_padded, collate_trees
from loraqa.prompt.plan import Size, padded_tokens, tree_tokens
from loraqa.prompt.tree import Tree


class Runner(Protocol):
    """Computes logits, gradients and decoding of one model."""

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        ...

    def size(self, trees: Sequence[Tree]) -> int:
        """Return how many tokens the model computes for a batch, padding included."""
        ...

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Return the logits that predict the answer tokens, (S, vocabulary), and the tokens, (S,).

        They are ordered by tree and branch.
        """
        ...

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        """Return a function that prepares a step and then computes its gradient.

        Args:
            adapter: the adapter in `model`; its gradient grows.
        """
        ...

    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        """Compute prompts: trees whose branches have no answer.

        Returns:
            A session with one row per branch, in the order of trees and branches, and the logits of
            each answer's first token, (rows, vocabulary).
        """
        ...


MakeTreeAttention = Callable[[TreeBatch, torch.device], TreeAttention]
MakeRowAttention = Callable[[Sequence[TreeSpan], States], RowAttention]
MakeGradients = Callable[[Runner, FlatAdapter], Gradients]


def plain_gradients(runner: Runner, _: FlatAdapter) -> Gradients:
    """Forward and backward, one micro-batch after another."""
    return lambda step, targets=None: partial(accumulate, runner, step, targets)


@dataclass(frozen=True)
class TreeRunner:
    """Computes a batch as one packed sequence, each trunk once.

    Making a runner switches the model's attention over. The defaults of the fields are the plain
    functions; an acceleration returns a runner with other fields (see `Acceleration`).

    Attributes:
        model: a model that can compute trees (see `choose_runner`).
        make_tree_attention: makes the attention of packed trees.
        make_row_attention: makes the attention in decoding.
        count_tokens: counts the tokens of a batch, padding included.
        make_gradients: see `Runner.gradients`.
    """

    model: PreTrainedModel
    make_tree_attention: MakeTreeAttention = PackedTreeAttention
    make_row_attention: MakeRowAttention = PaddedRowAttention
    count_tokens: Size = tree_tokens
    make_gradients: MakeGradients = plain_gradients

    def __post_init__(self) -> None:
        self.model.set_attn_implementation(TREE_ATTENTION)

    def size(self, trees: Sequence[Tree]) -> int:
        """See `Runner`."""
        return self.count_tokens(trees)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`."""
        batch = collate_trees(trees)
        logits = tree_logits(self.model, batch, self.make_tree_attention(batch, self.model.device))
        return logits, batch.targets.to(self.model.device)

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        """See `Runner`."""
        return self.make_gradients(self, adapter)

    @torch.no_grad()
    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        """See `Runner`."""
        batch = collate_trees(trees)
        recorded = StateRecorder(self.make_tree_attention(batch, self.model.device))
        logits = tree_logits(self.model, batch, recorded)
        if not recorded.states:
            raise UnsupportedAttentionError(NOT_REPLACED)
        rows = self.make_row_attention(batch.spans, recorded.states)
        return TreeSession(self.model, rows, batch.path_lengths), logits


def tree_logits(model: PreTrainedModel, batch: TreeBatch, attention: TreeAttention) -> Tensor:
    """Return logits (S, vocabulary) at the supervised tokens; the head runs on no other token."""
    with acting_on(batch.in_branch.to(model.device)):
        logits: Tensor = model(
            input_ids=batch.input_ids.to(model.device),
            position_ids=batch.position_ids.to(model.device),
            tree_attention=attention,
            logits_to_keep=batch.supervised.to(model.device),
            use_cache=False,
        ).logits
    return logits[0]


@dataclass(frozen=True)
class StateRecorder:
    """Attention over trees that remembers the keys and values of every layer."""

    attention: TreeAttention
    states: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`."""
        self.states[layer] = key[0], value[0]
        return self.attention.attend(layer, query, key, value, scaling)


@dataclass(frozen=True)
class PaddedRunner:
    """Computes one row per question, padded on the left, with the context repeated in each row."""

    model: PreTrainedModel

    def size(self, trees: Sequence[Tree]) -> int:
        """See `Runner`."""
        return padded_tokens(trees)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`."""
        device = self.model.device
        batch = collate_padded(trees, pad_id=0)
        with acting_on(batch.in_branch.to(device)):
            logits: Tensor = self.model(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                position_ids=batch.position_ids.to(device),
                use_cache=False,
            ).logits
        return _supervised(logits, batch)

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        """See `Runner`."""
        return plain_gradients(self, adapter)

    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        """See `Runner`."""
        return PaddedSession.prefill(self.model, trees)


@dataclass(frozen=True)
class RecomputingRunner:
    """Computes one row per question, padded on the right, and recomputes all of it at each step.

    This is exact for any causal language model, and slow. It is for models that padding on the left
    affects, and for models whose state cannot be forked.
    """

    model: PreTrainedModel

    def size(self, trees: Sequence[Tree]) -> int:
        """See `Runner`."""
        return padded_tokens(trees)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`."""
        batch = collate_padded(trees, pad_id=0, side="right")
        ids = batch.input_ids.to(self.model.device)
        with acting_on(batch.in_branch.to(self.model.device)):
            logits = self.model(input_ids=ids, use_cache=False).logits
        return _supervised(logits, batch)

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        """See `Runner`."""
        return plain_gradients(self, adapter)

    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        """See `Runner`."""
        return RecomputingSession.prefill(self.model, trees)


def _supervised(logits: Tensor, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
    """Take logits and targets at the supervised places of padded rows."""
    labels = batch.labels.to(logits.device)
    supervised = labels != -100
    return logits[supervised], labels[supervised]


Use = Literal["training", "answering"]


class Acceleration(Protocol):
    """The interface of a module that makes a runner faster (see `loraqa.speed`)."""

    def applies(self, runner: Runner, uses: frozenset[Use]) -> bool:
        """Return whether device, dtype and uses are right for this acceleration."""
        ...

    def wrap(self, runner: Runner) -> Runner:
        """Return a faster runner.

        Raises:
            Exception: the acceleration does not work here. The model still computes the same.
        """
        ...
