"""Attention over packed trees: each trunk is causal, each branch sees its trunk and itself.

     trunk       branch 1   branch 2
t t t t t t t  |  a a a a  |  b b b        the packed sequence of one tree

a token of the trunk sees     the trunk up to itself
a token of branch 1 sees      the whole trunk, and branch 1 up to itself
a token of branch 2 sees      the whole trunk, and branch 2 up to itself
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from loraqa.model.attention import repeat_heads
from loraqa.prompt.batch import TreeBatch, TreeSpan


class PackedTreeAttention:
    """Attend tree by tree, so that nothing is computed between trees.

    Args:
        batch: the packed trees.
        device: where the model computes.
    """

    def __init__(self, batch: TreeBatch, device: torch.device) -> None:
        self._spans = batch.spans
        self._masks = [branch_mask(span).to(device) for span in batch.spans]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`."""
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_heads(key, groups), repeat_heads(value, groups)
        attend = partial(scaled_dot_product_attention, scale=scaling)
        attended: list[Tensor] = []
        for span, mask in zip(self._spans, self._masks, strict=True):
            trunk = slice(span.start, span.branches_start)
            branches, tree = slice(span.branches_start, span.end), slice(span.start, span.end)
            attended += (
                attend(query[:, :, trunk], key[:, :, trunk], value[:, :, trunk], is_causal=True),
                attend(query[:, :, branches], key[:, :, tree], value[:, :, tree], attn_mask=mask),
            )
        return torch.cat(attended, dim=2)


def branch_mask(span: TreeSpan) -> Tensor:
    """Which tokens the branches of a tree see: (branch tokens, trunk + branch tokens) booleans."""
    lengths = torch.tensor(span.branches, dtype=torch.long)
    branch = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    same_branch_before = (branch[:, None] == branch[None, :]).tril()
    trunk = same_branch_before.new_ones(len(branch), span.trunk)
    return torch.cat([trunk, same_branch_before], dim=1)
