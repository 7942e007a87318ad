"""The ways to compute attention over packed trees."""

from collections.abc import Callable

from transformers import PreTrainedModel

from loraqa.model.attention import PackedTrees
from loraqa.model.blocks import BlockTrees
from loraqa.prompt.batch import TreeBatch

Pack = Callable[[TreeBatch, PreTrainedModel], PackedTrees]
"""From a batch, whose supervised tokens are the wanted ones, to its trees in a model."""


def pack_blocks(batch: TreeBatch, _model: PreTrainedModel) -> PackedTrees:
    """Tree by tree, on any device."""
    return BlockTrees(batch.spans, batch.supervised)


def pack_flex(batch: TreeBatch, model: PreTrainedModel) -> PackedTrees:
    """All trees by one compiled kernel."""
    # Its import takes long.
    from loraqa.model.flex import FlexTrees

    tokens = batch.input_ids.shape[1]
    return FlexTrees(batch.spans, tokens, batch.supervised, model.device)
