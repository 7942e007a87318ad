"""Triton trees attend as packed trees do.

Triton's interpreter runs the kernels here. Inside a model the kernels are computed by hand.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import assert_near, needs_interpreter, tiny_model
from tests.speed.gpu import flash_by_hand
from torch import Tensor

from loraqa.model.runner import TreeRunner
from loraqa.model.trees import PackedTreeAttention, branch_mask
from loraqa.prompt.batch import TreeBatch, TreeSpan
from loraqa.prompt.tree import Tree
from loraqa.speed.gpu import trees as triton
from loraqa.speed.gpu.trees import triton_tree_attention
from loraqa.speed.gpu.visibility import BLOCK, queries_of, token_sight

CPU = torch.device("cpu")
LENGTHS = st.lists(
    st.tuples(st.integers(1, 90), st.lists(st.integers(1, 40), min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)


def spans_of(lengths: list[tuple[int, list[int]]]) -> tuple[TreeSpan, ...]:
    spans: list[TreeSpan] = []
    for trunk, branches in lengths:
        spans.append(TreeSpan(spans[-1].end if spans else 0, trunk, tuple(branches)))
    return tuple(spans)


def batch_of(spans: tuple[TreeSpan, ...], tokens: int) -> TreeBatch:
    """Trees at these places of a packed sequence, whose ids do not matter."""
    ids, none = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    return TreeBatch(ids, ids, spans, none, none, none)


def some_of_branches(spans: tuple[TreeSpan, ...], every: int) -> Tensor:
    pieces = [piece for span in spans for piece in span.branch_slices()]
    return torch.cat([torch.arange(piece.start, piece.stop) for piece in pieces])[::every].clone()


def states_of(tokens: int, key_heads: int, groups: int, size: int) -> list[Tensor]:
    """Query, key, value and a gradient, (1, heads, tokens, d), with a model's strides."""
    heads = [key_heads * groups, key_heads, key_heads, key_heads * groups]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, tokens, each, size, generator=generator) for each in heads]
    return [each.transpose(1, 2).requires_grad_() for each in drawn]


@needs_interpreter
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
# The interpreter takes about a second for each example.
@settings(max_examples=12)
@given(
    lengths=LENGTHS,
    padding=st.integers(0, 70),
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    size=st.sampled_from([8, 24]),
    every=st.integers(1, 9),
)
def test_kernels_attend_as_packed_trees_do_with_their_gradients(
    lengths: Any, padding: int, key_heads: int, groups: int, size: int, every: int
) -> None:
    spans = spans_of(lengths)
    end = spans[-1].end
    batch = batch_of(spans, end + padding)
    *states, gradient = states_of(end + padding, key_heads, groups, size)
    query, key, value = states
    expected = PackedTreeAttention(batch, CPU).attend(
        0, *(each[:, :, :end] for each in states), 0.3
    )

    def gradients(output: Tensor, gradient: Tensor) -> Tensor:
        """All at once: that of queries which see one key is 0 but for rounding."""
        found = torch.autograd.grad(output, states, gradient, retain_graph=True)
        return torch.cat([each.flatten() for each in found])

    def check(attended: Tensor, expected: Tensor, gradient: Tensor) -> None:
        assert_near(attended, expected, 1e-5)
        assert_near(gradients(attended, gradient), gradients(expected, gradient), 1e-5)

    attended = triton_tree_attention(batch, CPU).attend(0, *states, 0.3)
    check(attended[:, :, :end], expected, gradient[:, :, :end])
    some = some_of_branches(spans, every)
    queries = queries_of(token_sight(spans, end + padding), some.int())
    attended = triton._attend(query[:, :, some], key, value, queries, 0.3)
    check(attended, expected[:, :, some], gradient[:, :, some])


@needs_interpreter
def test_kernels_refuse_what_they_would_misread(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.randn(3, 1, 2, 8, 16)
    queries = queries_of(token_sight([TreeSpan(0, 5, (3,))], 8), torch.arange(8))
    with pytest.raises(ValueError, match="^queries, keys and values differ in their width$"):
        triton._attend(query, key, value[..., :8], queries, 0.3)
    monkeypatch.setattr("loraqa.speed.gpu.kernels._MOST_NUMBERS", 127)
    message = "a packed sequence is too long for the Triton kernels; compute fewer tokens at once"
    with pytest.raises(ValueError, match=f"^{message}$"):
        triton._attend(query, key, value, queries, 0.3)


@given(lengths=LENGTHS, padding=st.integers(0, 150), every=st.integers(1, 50))
def test_blocks_visit_all_that_is_seen(lengths: Any, padding: int, every: int) -> None:
    spans = spans_of(lengths)
    tokens = spans[-1].end + padding
    seen = torch.eye(tokens, dtype=torch.bool)
    for span in spans:
        trunk = slice(span.start, span.branches_start)
        seen[trunk, trunk] = torch.ones(span.trunk, span.trunk).tril().bool()
        seen[span.branches_start : span.end, span.start : span.end] = branch_mask(span)
    some = some_of_branches(spans, every)
    for places in (torch.arange(tokens), torch.cat([some, torch.full((3,), tokens - 1)])):
        queries = queries_of(token_sight(spans, tokens), places.int())
        first, stop, own = queries.sees[:, :, None]
        keys = torch.arange(tokens)
        sees = (((keys >= first) & (keys < stop)) | (keys >= own)) & (keys <= places[:, None])
        assert torch.equal(sees, seen[places])
        for block, (begin, after) in enumerate(queries.keys.t().tolist()):
            of_block = sees[block * BLOCK : (block + 1) * BLOCK]
            assert of_block.any()
            assert not of_block[:, :begin].any()
            assert not of_block[:, after:].any()
        for block, (begin, after) in enumerate(queries.queries.t().tolist()):
            of_block = sees[:, block * BLOCK : (block + 1) * BLOCK]
            assert not of_block[:begin].any()
            assert not of_block[after:].any()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_trains_and_answers_as_with_packed_trees(
    kind: str, trees: list[Tree], prompts: list[Tree], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_attend", flash_by_hand.attend)
    plain = TreeRunner(tiny_model(kind, "float64"))
    weights = list(plain.model.parameters())[1:]

    def results(runner: TreeRunner) -> list[Tensor]:
        logits, targets = runner.answer_logits(trees)
        gradients = torch.autograd.grad(logits.logsumexp(dim=1).sum(), weights)
        session, prompted = runner.prefill(prompts)
        forks = torch.tensor([2, 0, 2, 5])
        other = session.fork(forks)
        chosen = prompted.argmax(dim=1)
        return [
            *(logits, targets, *gradients, prompted),
            *(other.advance(chosen[forks]), session.advance(chosen)),
        ]

    torch.testing.assert_close(results(triton.wrap(plain)), results(plain))


def test_they_are_not_for_a_cpu() -> None:
    assert not triton.applies(TreeRunner(tiny_model("gpt2")), frozenset(["training", "answering"]))
