"""Running a model over trees, or over padded rows where it cannot take trees.

All runners answer the same two calls: logits where an answer token is predicted, for training,
and a decoding session, for answering. `choose_runner` picks one.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from loraqa.model.attention import TREE_ATTENTION, PackedTrees
from loraqa.model.blocks import BlockTrees
from loraqa.model.buckets import padded_row
from loraqa.model.decoding import (
    DecodingSession,
    PaddedSession,
    RecomputingSession,
    TreeSession,
)
from loraqa.model.kernel_trees import KernelTrees, token_sight
from loraqa.model.last_layer import wanted_logits
from loraqa.prompt.batch import TreeBatch, collate_padded, collate_trees
from loraqa.prompt.plan import padded_tokens, tree_tokens
from loraqa.prompt.tree import Tree


class Runner(Protocol):
    """How a model computes trees."""

    model: PreTrainedModel

    def size(self, trees: Sequence[Tree]) -> int:
        """How many tokens the model computes for a batch, padding included."""
        ...

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Logits (S, vocabulary) and targets (S,) at every supervised token, branch by branch."""
        ...

    def session(self, trees: Sequence[Tree]) -> DecodingSession:
        """Start decoding: one row per branch, in the order of trees and branches."""
        ...


class TreeRunner:
    """Computes every trunk once, on any device.

    Args:
        model: one that can take trees (see `choose_runner`).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        model.set_attn_implementation(TREE_ATTENTION)
        self.model = model

    def size(self, trees: Sequence[Tree]) -> int:
        """See `Runner`."""
        return tree_tokens(trees)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`. The output head runs on the supervised positions alone."""
        batch, packed = self._lay_out(trees)
        targets = batch.targets.to(self.model.device)
        return wanted_logits(self.model, batch, packed)[: len(targets)], targets

    def session(self, trees: Sequence[Tree]) -> DecodingSession:
        """See `Runner`."""
        return TreeSession(self.model, *self._lay_out(trees))

    def _lay_out(self, trees: Sequence[Tree]) -> tuple[TreeBatch, PackedTrees]:
        batch = collate_trees(trees)
        return batch, BlockTrees(batch.spans, batch.supervised)


class KernelRunner(TreeRunner):
    """Computes every trunk once on a GPU, attention by kernels of our own."""

    def size(self, trees: Sequence[Tree]) -> int:
        """See `Runner`. In training rows are padded (see `train/graphs.py`)."""
        return padded_row(tree_tokens(trees))

    def _lay_out(self, trees: Sequence[Tree]) -> tuple[TreeBatch, PackedTrees]:
        batch, device = collate_trees(trees), self.model.device
        sight = token_sight(batch.spans, batch.input_ids.shape[1])
        return batch, KernelTrees(sight.to(device), batch.supervised.to(device))


class PaddedRunner:
    """Computes one row per question, its context repeated, and keeps keys and values."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

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
        labels = batch.labels.to(device)
        supervised = labels != -100
        return logits[supervised], labels[supervised]

    def session(self, trees: Sequence[Tree]) -> DecodingSession:
        """See `Runner`."""
        return PaddedSession(self.model, trees)


class RecomputingRunner:
    """Computes one row per question, and at each step of decoding all of it anew.

    For models that look at padding on their left, or keep of a row what cannot be forked: exact
    for any causal language model, and slow.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def size(self, trees: Sequence[Tree]) -> int:
        """See `Runner`."""
        return padded_tokens(trees)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`."""
        device = self.model.device
        batch = collate_padded(trees, pad_id=0, side="right")
        logits: Tensor = self.model(input_ids=batch.input_ids.to(device), use_cache=False).logits
        labels = batch.labels.to(device)
        supervised = labels != -100
        return logits[supervised], labels[supervised]

    def session(self, trees: Sequence[Tree]) -> DecodingSession:
        """See `Runner`."""
        return RecomputingSession(self.model, trees)
