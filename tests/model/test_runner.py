"""A tree equals its examples: logits, loss and gradients, against transformers' own padded rows."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import tiny_model
from torch.nn.functional import cross_entropy

from loraqa.model.attention import branch_mask
from loraqa.model.load import load_base
from loraqa.model.runner import PaddedRunner, Runner, TreeRunner, choose_runner
from loraqa.prompt.batch import TreeSpan
from loraqa.prompt.tree import Branch, Tree

ROTARY_KINDS = ["llama", "qwen2", "qwen3", "mistral"]
# transformers keeps rotary tables in fp32, whatever the model's dtype.
TOLERANCE = {"gpt2": 1e-10} | dict.fromkeys(ROTARY_KINDS, 1e-6)


def transformers_gradients(model: Any, trees: list[Tree]) -> tuple[float, list[torch.Tensor]]:
    """The loss as transformers computes it: separate rows, padded on the right."""
    rows = [([*t.trunk, *b.prompt, *b.answer], len(b.answer)) for t in trees for b in t.branches]
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows])
    labels = torch.full(input_ids.shape, -100)
    for row, (ids, answer) in enumerate(rows):
        labels[row, len(ids) - answer : len(ids)] = input_ids[row, len(ids) - answer : len(ids)]
    model.set_attn_implementation("eager")
    logits = model(input_ids=input_ids, attention_mask=mask).logits
    # Its own loss rounds logits to fp32, too coarse for what is compared here.
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


def our_gradients(runner: Runner, trees: list[Tree]) -> tuple[float, list[torch.Tensor]]:
    loss = cross_entropy(*runner.answer_logits(trees))
    return loss.item(), list(torch.autograd.grad(loss, list(runner.model.parameters())))


def relative_error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    flat, wanted = (torch.cat([g.double().flatten() for g in x]) for x in (actual, expected))
    return float((flat - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["gpt2", *ROTARY_KINDS])
@pytest.mark.parametrize("runner", [TreeRunner, PaddedRunner])
def test_gradients_are_those_of_separate_examples(
    kind: str, runner: type[Any], trees: list[Tree]
) -> None:
    model = tiny_model(kind, "float64")
    expected_loss, expected = transformers_gradients(model, trees)
    model.set_attn_implementation("sdpa")
    loss, gradients = our_gradients(runner(model), trees)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE[kind])
    assert relative_error(gradients, expected) < TOLERANCE[kind]


def test_gradients_agree_in_float32(trees: list[Tree]) -> None:
    model = tiny_model("gpt2")
    _, expected = transformers_gradients(model, trees)
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
    mask = branch_mask(TreeSpan(start=7, trunk=2, branches=(2, 1)), torch.device("cpu"))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


@pytest.mark.parametrize("kind", ["gpt2", *ROTARY_KINDS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_known_models_take_trees(kind: str, dtype: str) -> None:
    assert isinstance(choose_runner(tiny_model(kind, dtype), 200), TreeRunner)


def test_a_short_sliding_window_takes_the_padded_path(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("mistral")
    model.config.sliding_window = 100
    with caplog.at_level(logging.WARNING, "loraqa"):
        assert isinstance(choose_runner(model, 200), PaddedRunner)
    assert "sliding window of 100 tokens is shorter than 200" in caplog.text
    assert isinstance(choose_runner(model, 100), TreeRunner)


def test_a_model_whose_attention_ignores_the_tree_takes_the_padded_path(
    caplog: pytest.LogCaptureFixture, trees: list[Tree]
) -> None:
    config = transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=300)
    model = transformers.BloomForCausalLM(config).eval()
    with caplog.at_level(logging.WARNING, "loraqa"):
        runner = choose_runner(model, 200)
    assert isinstance(runner, PaddedRunner)
    assert "cannot compute trees" in caplog.text
    expected, gradients = transformers_gradients(model, trees)
    loss, ours = our_gradients(runner, trees)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert relative_error(ours, gradients) < 1e-4
