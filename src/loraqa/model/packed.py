"""Attention over packed trees by the means that suit the device."""

import torch

from loraqa.model.attention import PackedTrees
from loraqa.model.blocks import BlockTrees
from loraqa.prompt.batch import TreeBatch


def pack_trees(batch: TreeBatch, device: torch.device) -> PackedTrees:
    """The trees of a batch, of which the supervised tokens are wanted in the last layer."""
    if device.type == "cuda":
        # Takes long to import, and compiles.
        from loraqa.model.flex import FlexTrees

        return FlexTrees(batch.spans, batch.supervised, device)
    return BlockTrees(batch.spans, batch.supervised, device)
