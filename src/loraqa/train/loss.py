"""The loss of an optimizer step: the mean over all its supervised tokens, exactly.

With micro-batches m and their supervised tokens S_m, loss = Σ_m Σ_{t∈S_m} -log p(t) / Σ_m |S_m|;
a mean of the micro-batches' means would weigh the tokens of a short one more.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraqa.model.runner import Runner
from loraqa.prompt.plan import MicroBatch, Step

Loss = Callable[[Runner, MicroBatch], Tensor]
"""Sum, over the supervised tokens of a micro-batch, of what is to be small."""


Launch = Callable[[], Tensor]
"""Adds the gradient of a step's mean loss to the adapter's; returns that loss, detached."""

Gradients = Callable[[Step], Launch]
"""Prepares a step."""


def answer_loss(runner: Runner, trees: MicroBatch) -> Tensor:
    """Cross-entropy of the answer tokens, summed; in fp32 (fp64 for an fp64 model)."""
    return summed_loss(*runner.answer_logits(trees))


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The same from logits (S, vocabulary) and targets (S,), but where these are -100."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(precise, targets, reduction="sum")


def accumulate(runner: Runner, step: Step, loss: Loss = answer_loss) -> Tensor:
    """Add the gradient of the step's mean loss to the parameters'; return that loss, detached.

    The tokens of the whole step are counted first, so each micro-batch has its exact weight.
    """
    targets = supervised_tokens(step)
    total = torch.zeros((), device=runner.model.device)
    for trees in step:
        share = loss(runner, trees) / targets
        share.backward()
        total = total + share.detach()
    return total


def supervised_tokens(step: Step) -> int:
    """How many tokens of a step are to be predicted: those of the answers, and eos after each."""
    return sum(len(branch.answer) for trees in step for tree in trees for branch in tree.branches)
