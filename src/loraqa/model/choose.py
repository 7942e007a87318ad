"""Choosing the runner of a model: trees if the model can compute them, else padded rows.

A configuration does not describe everything that a model does. So the model computes small trees
and each question alone, and the logits are compared.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraqa.errors import InputError, in_a_line
from loraqa.lora.activated import acting_on
from loraqa.model.attention import NOT_REPLACED, UnsupportedAttentionError
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory
from loraqa.model.runner import PaddedRunner, RecomputingRunner, Runner, TreeRunner
from loraqa.model.source import position_limit
from loraqa.prompt.tree import Branch, TokenIds, Tree

logger = logging.getLogger("loraqa")

# The largest relative error of logits that rounding explains. In bf16, GPT-2 reaches 0.009 and
# models of 48 layers 0.01 to 0.025; fp32 and fp64 stay far below.
TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 1e-4,
    torch.bfloat16: 0.03,
    # It has three bits more than bfloat16.
    torch.float16: 0.004,
}

# Tokens of the longest path of `small_trees`.
_LONGEST_PATH = 15


@explaining_lack_of_memory("while the model was tried on small trees", ADVICE_TO_LOADERS)
def choose_runner(model: PreTrainedModel, max_length: int, *, answering: bool = True) -> Runner:
    """Return the plain runner of a model. Log a warning if the model cannot compute trees.

    Args:
        model: any causal language model.
        max_length: the longest path that it will compute, in tokens.
        answering: whether the model will answer; if not, decoding is not checked.

    Raises:
        InputError: the model is not causal, or takes too few tokens.
        LackOfMemoryError: small trees do not fit into memory beside the model.
    """
    if position_limit(model.config) < _LONGEST_PATH:
        raise InputError(
            f"A model that takes no more than {position_limit(model.config)} tokens cannot read a "
            "context, a question and an answer; choose one that takes more."
        )
    reason = _why_no_plain_attention(model, max_length) or _why_wrong(TreeRunner, model, answering)
    if reason is None:
        return TreeRunner(model)
    runner, cost = _by_rows(model, answering)
    logger.warning(
        "A %s model cannot compute trees, because %s; every question is computed with its own copy "
        "of the context, %s.",
        model.config.model_type,
        reason,
        cost,
    )
    return runner


def _by_rows(model: PreTrainedModel, answering: bool) -> tuple[Runner, str]:
    """Return a runner that computes one row per question, and what that costs."""
    if _why_wrong(PaddedRunner, model, answering) is None:
        return PaddedRunner(model), "which is slower"
    reason = _why_wrong(RecomputingRunner, model, answering)
    if reason is None:
        return RecomputingRunner(model), "and anew for each token of an answer, which is slow"
    raise InputError(
        f"A {model.config.model_type} model cannot be used: even with padding on the right, where "
        f"a causal model does not look, {reason}; choose a causal language model, such as GPT-2."
    )


def _why_no_plain_attention(model: PreTrainedModel, max_length: int) -> str | None:
    """Return why attention over trees cannot replace the model's, as its configuration says."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in layer_types or (window and not hasattr(config, "layer_types")):
        if window is None or window < max_length:
            return f"its sliding window of {window} tokens is shorter than {max_length}"
        layer_types.discard("sliding_attention")
    if layer_types - {"full_attention"}:
        return f"it has layers of type {', '.join(sorted(layer_types - {'full_attention'}))}"
    return None


@torch.no_grad()
def _why_wrong(
    make: Callable[[PreTrainedModel], Runner], model: PreTrainedModel, answering: bool
) -> str | None:
    """Return why a runner does not give the logits of every question alone; None if it does."""
    trees = small_trees(model)
    expected = _alone(model, trees)
    implementation = model.config._attn_implementation
    try:
        runner = make(model)
        actual, wanted = [runner.answer_logits(trees)[0]], [expected.flatten(0, 1)]
        if answering:
            actual += decoded(runner, trees)
            wanted += expected_decoding(expected)
        error = relative_error(torch.cat(actual), torch.cat(wanted))
    except torch.OutOfMemoryError:
        raise
    # A model may fail in any way on arguments that it does not know.
    except Exception as problem:
        return _explain(problem)
    finally:
        model.set_attn_implementation(implementation)
    if error < TOLERANCE[model.dtype]:
        return None
    return f"its logits differ from those of each question alone (relative error {error:.1g})"


def _explain(problem: Exception) -> str:
    """Return a clause that says why a model cannot be computed by a runner."""
    if isinstance(problem, UnsupportedAttentionError):
        return str(problem)
    if isinstance(problem, TypeError) and "tree_attention" in str(problem):
        return NOT_REPLACED
    return f"it fails ({type(problem).__name__}: {in_a_line(problem)})"


def small_trees(model: PreTrainedModel) -> list[Tree]:
    """Make three branches on two trunks, of different lengths, with answers of three tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = iter(np.random.default_rng(0).integers(vocabulary, size=29, dtype=np.int32))

    def take(length: int) -> TokenIds:
        return np.fromiter(ids, np.int32, length)

    def tree(trunk: int, *prompts: int) -> Tree:
        branches = tuple(Branch("", take(prompt), take(3)) for prompt in prompts)
        return Tree(take(trunk), branches, passage=0, window=(0, 0))

    return [tree(9, 2, 4), tree(3, 2)]


# The rows of a session on `small_trees` that are forked, and which of the forked rows are kept.
_FORKS, _KEPT = torch.tensor([2, 0, 2]), torch.tensor([1, 0])


def decoded(runner: Runner, trees: Sequence[Tree]) -> list[Tensor]:
    """Return all logits of a decoding session that does everything a session can do.

    It computes prompts, forks rows, reorders them, and goes on where another session has branched
    off.
    """
    device = runner.model.device
    branches = [branch for tree in trees for branch in tree.branches]
    answers = torch.stack([torch.from_numpy(branch.answer).long() for branch in branches])
    answers, forks, kept = (each.to(device) for each in (answers, _FORKS, _KEPT))
    session, first = runner.prefill([_without_answers(tree) for tree in trees])
    other = session.fork(forks)
    forked = other.advance(answers[forks, 0])
    other.select(kept)
    reordered = other.advance(answers[forks[kept], 1])
    return [first, forked, reordered, session.advance(answers[:, 0])]


def expected_decoding(alone: Tensor) -> list[Tensor]:
    """Take the logits that `decoded` should return from those of each question alone."""
    return [alone[:, 0], alone[_FORKS, 1], alone[_FORKS[_KEPT], 2], alone[:, 1]]


def _alone(model: PreTrainedModel, trees: Sequence[Tree]) -> Tensor:
    """Compute each question alone: logits that predict its answer, (rows, places, vocabulary).

    Raises:
        InputError: the logits are not finite.
    """
    logits = []
    for tree in trees:
        for branch in tree.branches:
            row = torch.from_numpy(np.concatenate([tree.trunk, branch.inputs])).long()
            in_branch = torch.arange(len(row), device=model.device) >= len(tree.trunk)
            with acting_on(in_branch):
                output = model(input_ids=row[None].to(model.device), use_cache=False)
            logits.append(output.logits[0, -len(branch.answer) :])
    alone = torch.stack(logits)
    if not alone.isfinite().all():
        raise InputError(
            f"The {model.config.model_type} model gives logits that are not finite; its weights "
            "are damaged, or need another dtype (--dtype; in a training, model.dtype), such as "
            "float32."
        )
    return alone


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return |actual - expected| / |expected|, computed in fp64; 0 if both are 0."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    smallest = torch.finfo(torch.float64).tiny
    return float((actual - expected).norm() / expected.norm().clamp(min=smallest))


def _without_answers(tree: Tree) -> Tree:
    branches = (replace(branch, answer=branch.answer[:0]) for branch in tree.branches)
    return replace(tree, branches=tuple(branches))
