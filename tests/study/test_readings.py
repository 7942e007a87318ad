"""Ways to read a context, against computations of their own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from study.clozes import with_clozes
from study.readings import (
    both_ways,
    losing_also_on,
    question_first,
    question_twice,
)
from tests.conftest import tiny_model
from tests.model.conftest import PASSAGES

from loraqa.lora.adapt import adapt
from loraqa.lora.flat import FlatAdapter
from loraqa.lora.settings import LoraSettings
from loraqa.model.loss import accumulate
from loraqa.model.runner import TreeRunner, tree_logits
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree


@pytest.fixture
def segments(tiny_tokenizer: Any) -> SegmentTokenizer:
    return SegmentTokenizer.from_transformers(tiny_tokenizer)


@pytest.fixture
def trees(segments: SegmentTokenizer) -> list[Tree]:
    return PromptEncoder(segments, Template(), 250, 20).encode_training(PASSAGES).trees


def _texts(tree: Tree, segments: SegmentTokenizer) -> list[str]:
    return [segments.decode([*tree.trunk, *branch.prompt]) for branch in tree.branches]


def test_changed_trees_say_what_their_names_say(
    trees: list[Tree], segments: SegmentTokenizer
) -> None:
    tree = trees[1]
    context, asked = "Context: A king.", "Question: Who reigned here?"
    (again,) = question_twice(tree, segments)
    assert _texts(again, segments) == [f"{context} {asked} {asked} Answer:"]
    (first,) = question_first(tree, segments)
    assert _texts(first, segments) == [f"{asked}\n{context} Answer:"]
    assert [len(question_first(each, segments)) for each in trees] == [3, 1, 2]


def test_trunks_are_read_both_ways_as_a_full_mask_does(trees: list[Tree], segments: Any) -> None:
    model = tiny_model("llama")
    runner = both_ways(1.0).change_runner(TreeRunner(model), segments)
    tree = trees[0]
    logits, _ = runner.answer_logits([tree])
    expected = []
    for branch in tree.branches:
        ids = np.concatenate([tree.trunk, branch.inputs])
        seen = torch.ones(len(ids), len(ids)).tril().bool()
        seen[: len(tree.trunk), : len(tree.trunk)] = True
        model.set_attn_implementation("eager")
        bias = torch.where(seen, 0.0, -torch.inf)[None, None]
        alone = model(torch.from_numpy(ids).long()[None], attention_mask=bias).logits[0]
        expected.append(alone[-len(branch.answer) :])
    assert torch.allclose(logits, torch.cat(expected), atol=1e-5)


def test_no_layer_both_ways_is_causal(trees: list[Tree], segments: Any) -> None:
    runner = TreeRunner(tiny_model("llama"))
    changed = both_ways(0.0).change_runner(runner, segments)
    assert torch.equal(changed.answer_logits(trees)[0], runner.answer_logits(trees)[0])


@pytest.mark.parametrize(("question", "context"), [(0.0, 0.0), (0.3, 0.1)])
def test_the_loss_is_the_weighted_sum_of_three_means(
    question: float, context: float, trees: list[Tree], segments: Any
) -> None:
    model = tiny_model("llama")
    adapt(model, LoraSettings(rank=2), 0)
    adapter, runner = FlatAdapter(model), TreeRunner(model)
    step = [trees[:1], trees[1:]]
    changed = losing_also_on(question, context).change_runner(runner, segments)
    answers = changed.gradients(adapter)(step)()
    actual = adapter.vector.grad.clone()
    adapter.vector.grad.zero_()
    plain = accumulate(runner, step)
    assert torch.allclose(answers, plain)
    if question:
        losses: list[list[Any]] = [[], []]
        for tree in trees:
            losses[1].append(_negative_log_probabilities(runner, tree, tree.trunk, None))
            losses[0] += [
                _negative_log_probabilities(runner, tree, b.prompt, b) for b in tree.branches
            ]
        means = [torch.cat(each).mean() for each in losses]
        (question * means[0] + context * means[1]).backward()
    assert torch.allclose(actual, adapter.vector.grad, rtol=1e-4, atol=1e-7)


def _negative_log_probabilities(runner: TreeRunner, tree: Tree, ids: Any, branch: Any) -> Any:
    """Return -ln p of all but the first of `ids`, computed in a tree with one branch."""
    alone = replace(tree, branches=(branch or tree.branches[0],))
    batch = collate_trees([alone])
    start = len(tree.trunk) if branch is not None else 0
    places = torch.arange(start, start + len(ids) - 1)
    attention = runner.make_tree_attention(batch, runner.model.device)
    logits = tree_logits(runner.model, replace(batch, supervised=places), attention)
    return torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(np.array(ids[1:])).long(), reduction="none"
    )


def test_clozes_ask_for_texts_that_occur_again() -> None:
    context = "The mill of Aune is old. Ruth Olen built the mill. Now Ruth Olen sleeps in Aune."
    passage = replace(PASSAGES[0], context=context, questions=PASSAGES[0].questions)
    (changed,) = with_clozes([passage], share=1.0)
    clozes = changed.questions[len(passage.questions) :]
    assert {q.answers[0].text for q in clozes} == {"Ruth Olen", "mill", "Aune"}
    for question in clozes:
        (answer,) = question.answers
        assert context[answer.start : answer.end] == answer.text
        assert question.text.replace("___", answer.text) in context
