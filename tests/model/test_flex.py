"""The kernel for GPUs sees what the blocks of the CPU see; run here in its plain form."""

import shutil
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from loraqa.model.blocks import BlockTrees, branch_mask
from loraqa.model.flex import FlexTrees, _compiled_attention, blocks_seen, sees, token_labels
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


@given(
    trees=st.lists(
        st.tuples(
            st.integers(1, 400), st.lists(st.integers(1, 150), min_size=1, max_size=4).map(tuple)
        ),
        min_size=1,
        max_size=6,
    ),
    padding=st.integers(0, 300),
    data=st.data(),
)
def test_no_block_is_left_out_in_which_anybody_sees_anybody(
    trees: list[tuple[int, tuple[int, ...]]], padding: int, data: st.DataObject
) -> None:
    spans: list[TreeSpan] = []
    for trunk, branches in trees:
        spans.append(TreeSpan(spans[-1].end if spans else 0, trunk, branches))
    tokens = spans[-1].end + padding
    drawn = data.draw(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=300))
    labels = token_labels([*spans, TreeSpan(spans[-1].end, 0, (1,) * padding)])
    for queries in (torch.arange(tokens), torch.tensor(sorted(drawn))):
        kernel_mask = BlockMask.from_kv_blocks(
            *blocks_seen(spans, tokens, queries), seq_lengths=(len(queries), tokens)
        )
        needed = create_block_mask(
            sees(*labels, queries), 1, 1, len(queries), tokens, device="cpu"
        ).to_dense()
        assert not (needed.bool() & ~kernel_mask.to_dense().bool()).any()


def test_blocks_of_other_trees_are_left_out() -> None:
    spans = [TreeSpan(0, 200, (56,)), TreeSpan(256, 100, (28,)), TreeSpan(384, 120, (8,))]
    count, order = blocks_seen(spans, 512 + 128, torch.arange(512 + 128))
    assert count.tolist() == [[[1, 2, 1, 1, 1]]]
    assert order[0, 0, :, 0].tolist() == [0, 0, 2, 3, 4]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_the_compiled_kernel_skips_no_block_that_it_needs() -> None:
    """The CPU's, which is compiled from the same lists of blocks as a GPU's."""
    spans = [TreeSpan(0, 300, (40, 30)), TreeSpan(370, 10, (3,)), TreeSpan(383, 200, (57,))]
    wanted = torch.tensor([300, 339, 369, 381, 600, 639])
    query, key, value = torch.randn(3, 1, 2, 640, 16)
    blocks = BlockTrees(spans, wanted)
    flex = FlexTrees(spans, 640, wanted, CPU)
    with patch("loraqa.model.flex.flex_attention", _compiled_attention), torch.no_grad():
        attended = flex.attend(0, query, key, value, 0.2)
        at_wanted = flex.attend_from_wanted(0, query[:, :, wanted], key, value, 0.2)
    torch.testing.assert_close(attended, blocks.attend(0, query, key, value, 0.2))
    torch.testing.assert_close(
        at_wanted, blocks.attend_from_wanted(0, query[:, :, wanted], key, value, 0.2)
    )
