"""The kernel for GPUs sees what the blocks of the CPU see; run here in its plain form."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from loraqa.model.blocks import BlockTrees, branch_mask
from loraqa.model.flex import FlexTrees, sees, token_labels
from loraqa.prompt.batch import TreeSpan

SPANS = (TreeSpan(0, 70, (5, 1, 9)), TreeSpan(85, 3, (2,)), TreeSpan(90, 130, (40, 30)))
WANTED = torch.tensor([74, 75, 84, 89, 259, 289])
CPU = torch.device("cpu")
PADDING = 7


def test_the_mask_is_that_of_every_tree_and_nothing_between_trees() -> None:
    length = SPANS[-1].end
    expected = torch.zeros(length, length, dtype=torch.bool)
    for span in SPANS:
        trunk = slice(span.start, span.branches_start)
        expected[trunk, trunk] = torch.ones(span.trunk, span.trunk, dtype=torch.bool).tril()
        expected[span.branches_start : span.end, span.start : span.end] = branch_mask(span)
    tree, branch = token_labels(SPANS)
    mask = create_mask(sees(tree, branch, torch.arange(length)), 1, 1, length, length, device="cpu")
    assert torch.equal(mask[0, 0], expected)
    at_wanted = create_mask(sees(tree, branch, WANTED), 1, 1, len(WANTED), length, device="cpu")
    assert torch.equal(at_wanted[0, 0], expected[WANTED])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("key_heads", [2, 4])
def test_it_attends_as_blocks_do_and_padding_to_itself(key_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    end = SPANS[-1].end
    query, key, value = (
        torch.randn(1, heads, end + PADDING, 16, generator=generator)
        for heads in (4, key_heads, key_heads)
    )
    blocks = BlockTrees(SPANS, WANTED)
    flex = FlexTrees(SPANS, end + PADDING, WANTED, CPU)
    real = [states[:, :, :end] for states in (query, key, value)]
    attended = flex.attend(0, query, key, value, 0.2)
    torch.testing.assert_close(attended[:, :, :end], blocks.attend(0, *real, 0.2))
    own = value[:, :, end:].repeat_interleave(4 // key_heads, dim=1)
    torch.testing.assert_close(attended[:, :, end:], own)
    torch.testing.assert_close(
        flex.attend_from_wanted(0, query[:, :, WANTED], key, value, 0.2),
        blocks.attend_from_wanted(0, real[0][:, :, WANTED], *real[1:], 0.2),
    )
