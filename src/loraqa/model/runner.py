"""Running a model over trees, or over padded rows where it cannot take trees.

Both runners answer the same two calls: logits where an answer token is predicted, for training,
and a decoding session, for answering. `choose_runner` picks one.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraqa.model.attention import TREE_ATTENTION, PackedTrees
from loraqa.model.decoding import DecodingSession, PaddedSession, TreeSession
from loraqa.prompt.batch import collate_padded, collate_trees
from loraqa.prompt.tree import Branch, Tree

logger = logging.getLogger("loraqa")

# How far rounding alone may drive two ways to compute the same logits apart. A wrong mask or
# wrong positions are beyond it by orders of magnitude in fp32, and by a factor of some in bf16.
_ROUNDING_STEPS = 10


class Runner(Protocol):
    """How a model computes trees."""

    model: PreTrainedModel

    def size(self, tree: Tree) -> int:
        """How many tokens the model computes for a tree."""
        ...

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Logits (S, vocabulary) and targets (S,) at every supervised token, branch by branch."""
        ...

    def session(self, trees: Sequence[Tree]) -> DecodingSession:
        """Start decoding: one row per branch, in the order of trees and branches."""
        ...


class TreeRunner:
    """Computes every trunk once."""

    def __init__(self, model: PreTrainedModel) -> None:
        model.set_attn_implementation(TREE_ATTENTION)
        self.model = model

    def size(self, tree: Tree) -> int:
        """See `Runner`."""
        return len(tree)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`. The output head runs on the supervised positions alone."""
        device = self.model.device
        batch = collate_trees(trees)
        logits: Tensor = self.model(
            input_ids=batch.input_ids.to(device),
            position_ids=batch.position_ids.to(device),
            trees=PackedTrees(batch.spans, device),
            logits_to_keep=batch.supervised.to(device),
            use_cache=False,
        ).logits
        return logits[0], batch.targets.to(device)

    def session(self, trees: Sequence[Tree]) -> DecodingSession:
        """See `Runner`."""
        return TreeSession(self.model, trees)


class PaddedRunner:
    """Computes one row per question, its context repeated: for any causal language model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def size(self, tree: Tree) -> int:
        """See `Runner`."""
        return tree.padded_length

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


def choose_runner(model: PreTrainedModel, max_length: int) -> Runner:
    """Trees if the model can take them, else padded rows, with a line that says so."""
    reason = _why_no_trees(model, max_length)
    if reason is None:
        return TreeRunner(model)
    logger.warning(
        "%s cannot compute trees (%s): every question is computed with its own copy of the "
        "context, which is slower.",
        model.config.model_type,
        reason,
    )
    return PaddedRunner(model)


def _why_no_trees(model: PreTrainedModel, max_length: int) -> str | None:
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in layer_types or (window and not hasattr(config, "layer_types")):
        if window is None or window < max_length:
            return f"its sliding window of {window} tokens is shorter than {max_length}"
        layer_types.discard("sliding_attention")
    if layer_types - {"full_attention"}:
        return f"it has layers of type {', '.join(sorted(layer_types - {'full_attention'}))}"
    return None if _trees_agree(model) else "its attention does not follow the tree"


@torch.no_grad()
def _trees_agree(model: PreTrainedModel) -> bool:
    """Compare a small tree with its separate rows, in the model itself."""
    implementation = model.config._attn_implementation
    vocabulary = model.config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(vocabulary, size=30, dtype=np.int32)
    branches = (Branch("", ids[20:23], ids[23:25]), Branch("", ids[25:29], ids[29:]))
    trees = [Tree(ids[:20], branches, passage=0, window=(0, 0))]
    expected = PaddedRunner(model).answer_logits(trees)[0].float()
    try:
        logits = TreeRunner(model).answer_logits(trees)[0].float()
    except (AttributeError, RuntimeError, TypeError, ValueError):
        logits = torch.full_like(expected, torch.nan)
    model.set_attn_implementation(implementation)
    error = (logits - expected).norm() / expected.norm()
    return bool(error < _ROUNDING_STEPS * torch.finfo(model.dtype).eps)
