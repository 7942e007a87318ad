"""A tree equals its examples: logits, loss and gradients, against transformers on padded rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import tiny_model
from tests.model.conftest import padded_examples
from torch.nn.functional import cross_entropy

from loraqa.model.attention import UnsupportedAttentionError, attend_trees
from loraqa.model.load import load_base
from loraqa.model.runner import PaddedRunner, RecomputingRunner, Runner, TreeRunner
from loraqa.model.trees import PackedTreeAttention, branch_mask
from loraqa.prompt.batch import TreeSpan, collate_trees
from loraqa.prompt.tree import Branch, Tree

ROTARY_KINDS = ["llama", "qwen2", "qwen3", "mistral"]
# transformers keeps rotary tables in fp32, whatever the model's dtype.
TOLERANCE = {"gpt2": 1e-10} | dict.fromkeys(ROTARY_KINDS, 1e-6)


def transformers_gradients(
    model: Any, trees: list[Tree], weights: list[torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    """The loss as transformers computes it: separate rows, padded on the right."""
    input_ids, mask, labels = padded_examples(trees)
    model.set_attn_implementation("eager")
    logits = model(input_ids=input_ids, attention_mask=mask).logits
    # Its own loss rounds logits to fp32, too coarse for what is compared here.
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return loss.item(), list(torch.autograd.grad(loss, weights))


def our_gradients(runner: Runner, trees: list[Tree]) -> tuple[float, list[torch.Tensor]]:
    loss = cross_entropy(*runner.answer_logits(trees))
    return loss.item(), list(torch.autograd.grad(loss, list(runner.model.parameters())))


def relative_error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    flat, wanted = (torch.cat([g.double().flatten() for g in x]) for x in (actual, expected))
    return float((flat - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["gpt2", *ROTARY_KINDS])
@pytest.mark.parametrize("runner", [TreeRunner, PaddedRunner, RecomputingRunner])
def test_gradients_are_those_of_separate_examples(
    kind: str, runner: type[Any], trees: list[Tree]
) -> None:
    model = tiny_model(kind, "float64")
    expected_loss, expected = transformers_gradients(model, trees, list(model.parameters()))
    model.set_attn_implementation("sdpa")
    loss, gradients = our_gradients(runner(model), trees)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE[kind])
    assert relative_error(gradients, expected) < TOLERANCE[kind]


def test_gradients_agree_in_float32(trees: list[Tree]) -> None:
    model = tiny_model("gpt2")
    _, expected = transformers_gradients(model, trees, list(model.parameters()))
    _, gradients = our_gradients(TreeRunner(model), trees)
    assert relative_error(gradients, expected) < 1e-5


def test_logits_at_real_size(shared: Path, trees: list[Tree]) -> None:
    model, _ = load_base(shared / "gpt2", random_weights=True, dtype="float32")
    with torch.no_grad():
        expected, targets = PaddedRunner(model).answer_logits(trees)
        logits, same_targets = TreeRunner(model).answer_logits(trees)
    assert torch.equal(targets, same_targets)
    assert relative_error([logits], [expected]) < 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_siblings_do_not_see_each_other(kind: str, trees: list[Tree]) -> None:
    runner = TreeRunner(tiny_model(kind))
    tree = trees[0]
    first = len(tree.branches[0].answer)
    changed = tree.branches[1]
    other = Branch("", changed.prompt[::-1].copy(), changed.answer[::-1].copy())
    with torch.no_grad():
        before, _ = runner.answer_logits([tree])
        after, _ = runner.answer_logits(
            [Tree(tree.trunk, (tree.branches[0], other, tree.branches[2]), 0, (0, 0))]
        )
    second = first + len(changed.answer)
    assert torch.equal(before[:first], after[:first])
    assert torch.equal(before[second:], after[second:])
    assert not torch.equal(before[first:second], after[first:second])


def test_branch_mask_is_drawn_right() -> None:
    mask = branch_mask(TreeSpan(start=7, trunk=2, branches=(2, 1)))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


@pytest.mark.parametrize("kind", [TreeRunner, PaddedRunner, RecomputingRunner])
def test_size_is_what_is_computed(kind: type[Any], trees: list[Tree]) -> None:
    model = tiny_model("gpt2")
    computed: list[int] = []
    model.transformer.wte.register_forward_hook(lambda _, ids, __: computed.append(ids[0].numel()))
    runner = kind(model)
    runner.answer_logits(trees)
    assert computed == [runner.size(trees)]


@pytest.mark.parametrize(
    "option", [{"softcap": 50.0}, {"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(1)}]
)
def test_attention_refuses_what_it_does_not_do(option: dict[str, Any]) -> None:
    model = tiny_model("gpt2")
    states = torch.zeros(1, 2, 4, 8)
    attention = model.transformer.h[0].attn
    tree = Tree(np.arange(2), (Branch("", np.arange(2), np.empty(0)),), 0, (0, 0))
    trees = PackedTreeAttention(collate_trees([tree]), torch.device("cpu"))
    attend_trees(
        attention, states, states, states, None, tree_attention=trees, dropout=0.0, softcap=None
    )
    with pytest.raises(UnsupportedAttentionError) as caught:
        attend_trees(attention, states, states, states, None, tree_attention=trees, **option)
    assert str(caught.value) == (
        f"its attention uses {next(iter(option))}, which attention over trees does not support"
    )
