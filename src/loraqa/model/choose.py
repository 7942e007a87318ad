"""Choosing the runner for a model: the fastest that computes what the model itself computes.

A configuration does not tell all that a model does, so small trees are computed in the model, and
their logits are compared with those of every row alone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraqa.errors import InputError, in_a_line
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory
from loraqa.model.runner import (
    KernelRunner,
    PaddedRunner,
    RecomputingRunner,
    Runner,
    TreeRunner,
)
from loraqa.model.source import position_limit
from loraqa.prompt.tree import Branch, TokenIds, Tree

logger = logging.getLogger("loraqa")

# How far rounding alone may drive two ways to compute the same logits apart, relative. In bf16
# GPT-2 reaches 0.009, models of 48 layers 0.01 to 0.025; in fp32 and fp64 all stay far below.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.03}

_GRADIENT_TOLERANCE = 0.1

# Tokens of the longest path of `small_trees`.
_LONGEST_PATH = 15

_Kind = Callable[[PreTrainedModel], Runner]

# From the fastest on.
_OVER_TREES: dict[str, tuple[type[TreeRunner], ...]] = {"cuda": (KernelRunner, TreeRunner)}


@explaining_lack_of_memory("while the model was tried on small trees", ADVICE_TO_LOADERS)
def choose_runner(
    model: PreTrainedModel, max_length: int, *, training: bool = False, answering: bool = True
) -> Runner:
    """Trees if the model can take them, else one row per question, with a line that says so.

    Args:
        model: any causal language model.
        max_length: the longest path that it will compute, in tokens.
        training: whether gradients are wanted, which come from other kernels.
        answering: whether sessions are, too.

    Raises:
        InputError: the model is not causal.
        LackOfMemoryError: not even small trees fit into memory beside it.
    """
    if position_limit(model.config) < _LONGEST_PATH:
        raise InputError(
            f"A model that takes no more than {position_limit(model.config)} tokens cannot read a "
            "context, a question and an answer; choose one that takes more."
        )
    reason = _why_no_full_attention(model, max_length)
    if reason is None:
        for over_trees in _OVER_TREES.get(model.device.type, (TreeRunner,)):
            reason = _why_wrong(over_trees, model, training, answering)
            if reason is None:
                return over_trees(model)
            logger.info("Trees are not computed by %s: %s.", over_trees.__name__, reason)
    kind, slowness = _by_rows(model)
    logger.warning(
        "%s cannot compute trees (%s): every question is computed with its own copy of the "
        "context, %s.",
        model.config.model_type,
        reason,
        slowness,
    )
    return kind(model)


def _by_rows(model: PreTrainedModel) -> tuple[_Kind, str]:
    """How to compute one row per question, and how slow that is."""
    if _why_wrong(PaddedRunner, model) is None:
        return PaddedRunner, "which is slower"
    reason = _why_wrong(RecomputingRunner, model)
    if reason is None:
        return RecomputingRunner, "and anew for each token of an answer, which is slow"
    raise InputError(
        f"A {model.config.model_type} model cannot be used ({reason} of a row alone, as if what it "
        "says of a token depended on those that follow); choose a causal language model, such as "
        "GPT-2."
    )


def _why_no_full_attention(model: PreTrainedModel, max_length: int) -> str | None:
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
    kind: _Kind, model: PreTrainedModel, training: bool = False, answering: bool = True
) -> str | None:
    """Why a runner does not give the logits of every row alone, or in training no gradients."""
    trees = small_trees(model)
    expected = _alone(model, trees)
    implementation = model.config._attn_implementation
    try:
        runner = kind(model)
        pairs = [(runner.answer_logits(trees)[0], expected.flatten(0, 1))]
        if answering:
            pairs += _answered(runner, trees, expected)
        error = _relative_error(pairs)
        if training and isinstance(runner, KernelRunner):
            reason = why_gradients_differ(
                small_gradients(runner, trainable(model)[:1]),
                small_gradients(TreeRunner(model), trainable(model)[:1]),
            )
            if reason is not None:
                return reason
    except torch.OutOfMemoryError:
        raise
    # Whatever a model makes of arguments that it does not know, or a compiler of a kernel.
    except Exception as problem:
        return in_a_line(problem)
    finally:
        model.set_attn_implementation(implementation)
    return None if error < _TOLERANCE[model.dtype] else f"its logits are {error:.1g} off those"


def trainable(model: PreTrainedModel) -> list[nn.Parameter]:
    """Its weights that are not frozen."""
    return [weight for weight in model.parameters() if weight.requires_grad]


@torch.enable_grad()
def small_gradients(runner: Runner, weights: Sequence[nn.Parameter]) -> Tensor:
    """Gradients of these weights, one after another, over small trees."""
    if not weights:
        return torch.zeros(0)
    logits, _ = runner.answer_logits(small_trees(runner.model))
    gradients = torch.autograd.grad(logits.logsumexp(dim=1).sum(), weights)
    return torch.cat([gradient.flatten() for gradient in gradients])


def why_gradients_differ(actual: Tensor, expected: Tensor) -> str | None:
    """None if it may be rounding alone: that makes hundredths of a gradient in bf16."""
    error = float((actual.double() - expected.double()).norm() / expected.double().norm())
    return None if error < _GRADIENT_TOLERANCE else f"gradients are {error:.1g} off"


def small_trees(model: PreTrainedModel) -> list[Tree]:
    """Three branches on two trunks, of unlike lengths, with answers of three tokens each."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = iter(np.random.default_rng(0).integers(vocabulary, size=29, dtype=np.int32))

    def take(length: int) -> TokenIds:
        return np.fromiter(ids, np.int32, length)

    def tree(trunk: int, *prompts: int) -> Tree:
        branches = tuple(Branch("", take(prompt), take(3)) for prompt in prompts)
        return Tree(take(trunk), branches, passage=0, window=(0, 0))

    return [tree(9, 2, 4), tree(3, 2)]


def _alone(model: PreTrainedModel, trees: Sequence[Tree]) -> Tensor:
    """Logits that predict the answers, each row computed alone: (rows, places, vocabulary)."""
    logits = []
    for tree in trees:
        for branch in tree.branches:
            row = torch.from_numpy(np.concatenate([tree.trunk, branch.inputs])).long()
            output = model(input_ids=row[None].to(model.device), use_cache=False)
            logits.append(output.logits[0, -len(branch.answer) :])
    return torch.stack(logits)


def _answered(
    runner: Runner, trees: Sequence[Tree], expected: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of a session, and those of (rows, places, vocabulary) that they should be.

    It does all that a session can do: prompts, forks, an order of rows, and going on where another
    has branched off.
    """
    device = expected.device
    answers = torch.stack(
        [torch.from_numpy(branch.answer).long() for tree in trees for branch in tree.branches]
    ).to(device)
    session = runner.session([_without_answers(tree) for tree in trees])
    forks, kept = torch.tensor([2, 0, 2], device=device), torch.tensor([1, 0], device=device)
    yield session.prefill(), expected[:, 0]
    other = session.branch_off(forks)
    yield other.advance(answers[forks, 0]), expected[forks, 1]
    other.select(kept)
    yield other.advance(answers[forks[kept], 1]), expected[forks[kept], 2]
    yield session.advance(answers[:, 0]), expected[:, 1]


def _relative_error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """How far the first of each pair are from the second, all together."""
    actual, wanted = (torch.cat(logits).cpu().double() for logits in zip(*pairs, strict=True))
    return float((actual - wanted).norm() / wanted.norm())


def _without_answers(tree: Tree) -> Tree:
    branches = (replace(branch, answer=branch.answer[:0]) for branch in tree.branches)
    return replace(tree, branches=tuple(branches))
