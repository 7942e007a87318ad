"""Running a model over trees, or over padded rows where the model cannot compute trees.

Every runner answers the same calls: logits and gradients where an answer token is predicted, for
training, and a decoding session, for answering. `choose_runner` picks the runner of a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraqa.lora.flat import FlatAdapter
from loraqa.model.attention import TREE_ATTENTION, Rows, States, Trees
from loraqa.model.loss import Gradients, accumulate
from loraqa.model.rows import PaddedRows
from loraqa.model.session import DecodingSession, PaddedSession, RecomputingSession, TreeSession
from loraqa.model.trees import PackedTrees
from loraqa.prompt.batch import PaddedBatch, TreeBatch, TreeSpan, collate_padded, collate_trees
from loraqa.prompt.plan import Size, padded_tokens, tree_tokens
from loraqa.prompt.tree import Tree


class Runner(Protocol):
    """How a model is computed."""

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        ...

    def size(self, trees: Sequence[Tree]) -> int:
        """Return how many tokens the model computes for a batch, padding included."""
        ...

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Return logits (S, vocabulary) and targets (S,) at every supervised token, by branch."""
        ...

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        """Return the function that computes the gradient of a step, for the adapter in `model`."""
        ...

    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        """Compute prompts: trees whose branches have no answer.

        Returns:
            A session with one row per branch, in the order of trees and branches, and the logits of
            each answer's first token, (rows, vocabulary).
        """
        ...


MakeTrees = Callable[[TreeBatch, torch.device], Trees]
MakeRows = Callable[[Sequence[TreeSpan], States], Rows]
MakeGradients = Callable[[Runner, FlatAdapter], Gradients]


def plain_gradients(runner: Runner, _: FlatAdapter) -> Gradients:
    """Forward and backward, one micro-batch after another."""
    return lambda step: partial(accumulate, runner, step)


@dataclass(frozen=True)
class TreeRunner:
    """Computes every trunk once.

    The plain algorithm is the default of every field. An acceleration returns a runner with other
    fields (see `Acceleration`).

    Attributes:
        model: a model that can compute trees (see `choose_runner`).
        make_trees: the attention of packed trees.
        make_rows: the attention of answers being written.
        tokens: how many tokens a batch takes.
        make_gradients: see `Runner.gradients`.
    """

    model: PreTrainedModel
    make_trees: MakeTrees = PackedTrees
    make_rows: MakeRows = PaddedRows
    tokens: Size = tree_tokens
    make_gradients: MakeGradients = plain_gradients

    def __post_init__(self) -> None:
        self.model.set_attn_implementation(TREE_ATTENTION)

    def size(self, trees: Sequence[Tree]) -> int:
        """See `Runner`."""
        return self.tokens(trees)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`."""
        batch = collate_trees(trees)
        logits = tree_logits(self.model, batch, self.make_trees(batch, self.model.device))
        return logits, batch.targets.to(self.model.device)

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        """See `Runner`."""
        return self.make_gradients(self, adapter)

    @torch.no_grad()
    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        """See `Runner`."""
        batch = collate_trees(trees)
        recorded = RecordedTrees(self.make_trees(batch, self.model.device))
        logits = tree_logits(self.model, batch, recorded)
        rows = self.make_rows(batch.spans, recorded.states)
        return TreeSession(self.model, rows, batch.path_lengths), logits


def tree_logits(model: PreTrainedModel, batch: TreeBatch, trees: Trees) -> Tensor:
    """Return logits (S, vocabulary) at the supervised tokens; the head runs on no other token."""
    logits: Tensor = model(
        input_ids=batch.input_ids.to(model.device),
        position_ids=batch.position_ids.to(model.device),
        trees=trees,
        logits_to_keep=batch.supervised.to(model.device),
        use_cache=False,
    ).logits
    return logits[0]


@dataclass(frozen=True)
class RecordedTrees:
    """Trees that remember the keys and values of every layer."""

    trees: Trees
    states: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`."""
        self.states[layer] = key[0], value[0]
        return self.trees.attend(layer, query, key, value, scaling)


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
        session = PaddedSession(self.model, trees)
        return session, session.first_logits


@dataclass(frozen=True)
class RecomputingRunner:
    """Computes one row per question, padded on the right, and all of it anew at each step.

    This is exact for any causal language model, and slow. It is for models that look at padding on
    their left, and for models whose state cannot be forked.
    """

    model: PreTrainedModel

    def size(self, trees: Sequence[Tree]) -> int:
        """See `Runner`."""
        return padded_tokens(trees)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`."""
        batch = collate_padded(trees, pad_id=0, side="right")
        ids = batch.input_ids.to(self.model.device)
        return _supervised(self.model(input_ids=ids, use_cache=False).logits, batch)

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        """See `Runner`."""
        return plain_gradients(self, adapter)

    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        """See `Runner`."""
        session = RecomputingSession(self.model, trees)
        return session, session.first_logits


def _supervised(logits: Tensor, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
    """Take logits and targets at the supervised places of padded rows."""
    labels = batch.labels.to(logits.device)
    supervised = labels != -100
    return logits[supervised], labels[supervised]


Use = Literal["training", "answering"]


class Acceleration(Protocol):
    """A faster way to compute the same. A module of `loraqa.speed` that has these functions."""

    def applies(self, runner: Runner, uses: frozenset[Use]) -> bool:
        """Return whether device, dtype and uses are right for this acceleration."""
        ...

    def wrap(self, runner: Runner) -> Runner:
        """Return a faster runner.

        Raises:
            Exception: of any kind, where this does not work here. The model is as before.
        """
        ...
