"""The ways to compute attention over packed trees."""

from collections.abc import Callable

import torch

from loraqa.model.attention import PackedTrees
from loraqa.model.blocks import BlockTrees
from loraqa.prompt.batch import TreeBatch

Pack = Callable[[TreeBatch, torch.device], PackedTrees]
"""From a batch, whose supervised tokens are the wanted ones, to its trees on a device."""


def pack_blocks(batch: TreeBatch, device: torch.device) -> PackedTrees:
    """Tree by tree, on any device."""
    return BlockTrees(batch.spans, batch.supervised, device)


def pack_flex(batch: TreeBatch, device: torch.device) -> PackedTrees:
    """All trees by one compiled kernel."""
    # Its import takes long.
    from loraqa.model.flex import FlexTrees

    return FlexTrees(batch.spans, batch.supervised, device)
