"""Attention of variable lengths over trees is that of blocks.

The kernels are a GPU's: here they are computed by hand, see `tests/test_cuda.py` for them.
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_config
from tests.model import flash_by_hand
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraqa.model.attention import Rows
from loraqa.model.blocks import BlockTrees
from loraqa.model.buckets import padded_row
from loraqa.model.rows import GrowingRows
from loraqa.model.runner import TreeRunner, VarlenRunner
from loraqa.model.varlen import VarlenTrees, collate_varlen
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.plan import tree_tokens
from loraqa.prompt.tree import Branch, Tree

LENGTHS = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
# A segment may be as long as this, and more of them are cut.
SHORT = 16


@pytest.fixture(scope="module", autouse=True)
def by_hand() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("attend_part", "part_gradients"):
            patch.setattr(f"loraqa.model.flash.{name}", getattr(flash_by_hand, name))
        patch.setattr("loraqa.model.varlen_rows.attend_part", flash_by_hand.attend_part)
        patch.setattr("loraqa.model.varlen._LIMIT", SHORT)
        yield


def trees_of(lengths: list[tuple[int, list[tuple[int, int]]]]) -> list[Tree]:
    def ids(length: int) -> Any:
        return torch.randint(100, (length,), dtype=torch.int32).numpy()

    return [
        Tree(
            ids(trunk),
            tuple(Branch("", ids(prompt), ids(answer)) for prompt, answer in branches),
            passage=0,
            window=(0, 0),
        )
        for trunk, branches in lengths
    ]


def states_of(tokens: int, key_heads: int, groups: int, seed: int) -> list[Tensor]:
    """Query, key, value and a gradient, (1, heads, tokens, d)."""
    generator = torch.Generator().manual_seed(seed)
    heads = [key_heads * groups, key_heads, key_heads, key_heads * groups]
    return [
        torch.randn(1, each, tokens, 4, dtype=torch.float64, generator=generator) for each in heads
    ]


def places_of(trees: list[Tree]) -> Tensor:
    """Where the tokens of `collate_trees` lie with all trunks first."""
    spans = collate_trees(trees).spans
    trunks = [torch.arange(span.start, span.branches_start) for span in spans]
    branches = [torch.arange(span.branches_start, span.end) for span in spans]
    return torch.cat(trunks + branches).argsort()


@given(
    lengths=LENGTHS,
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    padding=st.tuples(st.integers(1, 40), st.integers(0, 40)),
)
def test_it_attends_as_blocks_do_with_their_gradients(
    lengths: Any, key_heads: int, groups: int, padding: tuple[int, int]
) -> None:
    trees = trees_of(lengths)
    packed, places = collate_trees(trees), places_of(trees)
    tokens, wanted = packed.input_ids.shape[1], len(packed.supervised)
    batch = collate_varlen(trees, tokens + padding[0], wanted + padding[1])
    assert torch.equal(batch.input_ids[:, places], packed.input_ids)
    assert torch.equal(batch.position_ids[:, places], packed.position_ids)
    assert torch.equal(batch.supervised[:wanted], places[packed.supervised])
    assert torch.equal(batch.targets, packed.targets)
    assert batch.path_lengths == packed.path_lengths

    query, key, value, gradient = states_of(tokens + padding[0], key_heads, groups, seed=0)
    laid_out = [each.requires_grad_() for each in (query, key, value)]
    trees_there, trees_here = VarlenTrees(batch), BlockTrees(packed.spans, packed.supervised)

    def in_place(states: Tensor) -> Tensor:
        return states[:, :, places]

    there = trees_there.attend(0, *laid_out, 0.3)
    here = trees_here.attend(0, *map(in_place, laid_out), 0.3)
    torch.testing.assert_close(in_place(there), here)
    torch.testing.assert_close(
        torch.autograd.grad(in_place(there), laid_out, in_place(gradient)),
        torch.autograd.grad(here, laid_out, in_place(gradient)),
    )
    some = trees_there.attend_from_wanted(0, query[:, :, batch.supervised], key, value, 0.3)
    expected = trees_here.attend_from_wanted(
        0, in_place(query)[:, :, packed.supervised], in_place(key), in_place(value), 0.3
    )
    torch.testing.assert_close(some[:, :, :wanted], expected)
    assert some.isfinite().all()
    torch.testing.assert_close(
        torch.autograd.grad(some[:, :, :wanted], laid_out, gradient[:, :, :wanted]),
        torch.autograd.grad(expected, laid_out, gradient[:, :, :wanted]),
    )


@given(
    lengths=LENGTHS,
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    steps=st.integers(1, 20),
    data=st.data(),
)
def test_rows_attend_as_growing_ones_do(
    lengths: Any, key_heads: int, groups: int, steps: int, data: st.DataObject
) -> None:
    trees = trees_of(lengths)
    packed, places = collate_trees(trees), places_of(trees)
    batch = collate_varlen(trees)
    layers = {
        layer: tuple(
            each[0] for each in states_of(packed.input_ids.shape[1], key_heads, groups, layer)[1:3]
        )
        for layer in range(2)
    }
    there: Rows = VarlenTrees(batch).rows(layers)
    in_place = {layer: tuple(each[:, places] for each in pair) for layer, pair in layers.items()}
    here: Rows = GrowingRows(packed.spans, in_place)
    count = len(batch.path_lengths)
    for step in range(steps):
        both = there, here
        for rows in both:
            rows.make_room()
        query, key, value, _ = states_of(count, key_heads, groups, step)
        for layer in layers:
            attended = [rows.attend(layer, query, key, value, 0.3) for rows in both]
            torch.testing.assert_close(*attended)
        if data.draw(st.booleans()):
            chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
            there, here = (rows.select(torch.tensor(chosen)) for rows in both)
            count = len(chosen)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_trains_and_answers_as_with_blocks(
    kind: str, trees: list[Tree], prompts: list[Tree]
) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float64).eval()
    weights = list(model.parameters())[1:]

    def results(runner: TreeRunner) -> list[Tensor]:
        logits, targets = runner.answer_logits(trees)
        gradients = torch.autograd.grad(logits.logsumexp(dim=1).sum(), weights)
        session = runner.session(prompts)
        prompted = session.prefill()
        forks = torch.tensor([2, 0, 2, 5])
        other = session.branch_off(forks)
        chosen = prompted.argmax(dim=1)
        return [
            *(logits, targets, *gradients, prompted),
            *(other.advance(chosen[forks]), session.advance(chosen)),
        ]

    torch.testing.assert_close(results(VarlenRunner(model)), results(TreeRunner(model)))
    runner = VarlenRunner(model)
    assert runner.size(trees) == padded_row(tree_tokens(trees))
