"""Attention by a GPU's kernels is that of blocks: here by hand, and as Triton interprets them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import assert_near, needs_interpreter, tiny_model
from tests.speed.gpu import flash_by_hand
from torch import Tensor

from loraqa.model import kernel_trees
from loraqa.model.runner import KernelRunner, TreeRunner
from loraqa.prompt.batch import TreeSpan
from loraqa.prompt.tree import Tree
from loraqa.speed.cpu.products import BlockTrees, branch_mask
from loraqa.speed.gpu.trees import BLOCK, KernelTrees, queries_of, token_sight

LENGTHS = st.lists(
    st.tuples(st.integers(1, 90), st.lists(st.integers(1, 40), min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_trees, "_attend", flash_by_hand.attend)


def spans_of(lengths: list[tuple[int, list[int]]]) -> list[TreeSpan]:
    spans: list[TreeSpan] = []
    for trunk, branches in lengths:
        spans.append(TreeSpan(spans[-1].end if spans else 0, trunk, tuple(branches)))
    return spans


def some_of_branches(spans: list[TreeSpan], every: int) -> Tensor:
    pieces = [piece for span in spans for piece in span.branch_slices()]
    return torch.cat([torch.arange(piece.start, piece.stop) for piece in pieces])[::every].clone()


def states_of(tokens: int, key_heads: int, groups: int, size: int) -> list[Tensor]:
    """Query, key, value and a gradient, (1, heads, tokens, d), as a model gives them."""
    heads = [key_heads * groups, key_heads, key_heads, key_heads * groups]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, tokens, each, size, generator=generator) for each in heads]
    return [each.transpose(1, 2).requires_grad_() for each in drawn]


@needs_interpreter
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
# Interpreting takes a second or so.
@settings(max_examples=12)
@given(
    lengths=LENGTHS,
    padding=st.integers(0, 70),
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    size=st.sampled_from([8, 24]),
    every=st.integers(1, 9),
)
def test_kernels_attend_as_blocks_do_with_their_gradients(
    lengths: Any, padding: int, key_heads: int, groups: int, size: int, every: int
) -> None:
    spans = spans_of(lengths)
    wanted, end = some_of_branches(spans, every), spans[-1].end
    *states, gradient = states_of(end + padding, key_heads, groups, size)
    kernels = KernelTrees(token_sight(spans, end + padding), wanted)
    blocks = BlockTrees(spans, wanted)
    real = [each[:, :, :end] for each in states]

    def check(attended: Tensor, expected: Tensor, gradient: Tensor) -> None:
        assert_near(attended, expected, 1e-5)
        # All gradients at once: that of queries which see one key is 0 but for rounding.
        actual_gradients, expected_gradients = (
            torch.cat([each.flatten() for each in torch.autograd.grad(output, states, gradient)])
            for output in (attended, expected)
        )
        assert_near(actual_gradients, expected_gradients, 1e-5)

    check(
        kernels.attend(0, *states, 0.3)[:, :, :end],
        blocks.attend(0, *real, 0.3),
        gradient[:, :, :end],
    )
    query, key, value = states
    check(
        kernels.attend_from_wanted(0, query[:, :, wanted], key, value, 0.3),
        blocks.attend_from_wanted(0, query[:, :, wanted], *real[1:], 0.3),
        gradient[:, :, wanted],
    )


@needs_interpreter
def test_what_the_kernels_would_misread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.randn(3, 1, 2, 8, 16)
    queries = queries_of(token_sight([TreeSpan(0, 5, (3,))], 8), torch.arange(8))
    with pytest.raises(ValueError, match="width"):
        kernel_trees._attend(query, key, value[..., :8], queries, 0.3)
    monkeypatch.setattr("loraqa.speed.gpu.kernels._MOST_NUMBERS", 127)
    with pytest.raises(ValueError, match="too long"):
        kernel_trees._attend(query, key, value, queries, 0.3)


@given(lengths=LENGTHS, padding=st.integers(0, 150), every=st.integers(1, 50))
def test_blocks_visit_all_that_is_seen(lengths: Any, padding: int, every: int) -> None:
    spans = spans_of(lengths)
    end = spans[-1].end
    tokens = end + padding
    seen = torch.eye(tokens, dtype=torch.bool)
    for span in spans:
        trunk = slice(span.start, span.branches_start)
        seen[trunk, trunk] = torch.ones(span.trunk, span.trunk).tril().bool()
        seen[span.branches_start : span.end, span.start : span.end] = branch_mask(span)
    wanted = some_of_branches(spans, every)
    for places in (torch.arange(tokens), torch.cat([wanted, torch.full((3,), tokens - 1)])):
        queries = queries_of(token_sight(spans, tokens), places.int())
        first, stop, own = queries.sees[:, :, None]
        keys = torch.arange(tokens)
        sees = (((keys >= first) & (keys < stop)) | (keys >= own)) & (keys <= places[:, None])
        assert torch.equal(sees, seen[places])
        for block, (begin, after) in enumerate(queries.keys.t().tolist()):
            rows = sees[block * BLOCK : (block + 1) * BLOCK]
            assert rows.any()
            assert not rows[:, :begin].any()
            assert not rows[:, after:].any()
        for block, (begin, after) in enumerate(queries.queries.t().tolist()):
            columns = sees[:, block * BLOCK : (block + 1) * BLOCK]
            assert not columns[:begin].any()
            assert not columns[after:].any()


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_trains_and_answers_as_with_blocks(
    kind: str, trees: list[Tree], prompts: list[Tree]
) -> None:
    model = tiny_model(kind, "float64")
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

    torch.testing.assert_close(results(KernelRunner(model)), results(TreeRunner(model)))


@pytest.mark.usefixtures("by_hand")
def test_size_is_that_of_a_padded_row(trees: list[Tree]) -> None:
    runner = KernelRunner(tiny_model("gpt2"))
    tokens = TreeRunner(runner.model).size(trees)
    assert tokens < runner.size(trees) <= tokens + 256
