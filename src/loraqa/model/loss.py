"""The loss of an optimizer step: the mean over all its supervised tokens, exactly.

With micro-batches m and their supervised tokens S_m, loss = Σ_m Σ_{t∈S_m} -log p(t) / Σ_m |S_m|.
A mean of the micro-batches' means would give the tokens of a short micro-batch more weight.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraqa.prompt.plan import Step

if TYPE_CHECKING:
    from loraqa.model.runner import Runner

Launch = Callable[[], Tensor]
"""A function that adds the gradient of a step to the adapter's, and returns the loss, detached."""


class Gradients(Protocol):
    """A function that does a step's work on the CPU, such as padding, and returns its `Launch`."""

    def __call__(self, step: Step, targets: int | None = None) -> Launch:
        """Prepare a step.

        Args:
            step: the micro-batches.
            targets: the number of supervised tokens in the whole step, where other processes
                compute the rest of it; None counts those of `step`.
        """


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross-entropy of the answer tokens, in fp32 (in fp64 for an fp64 model).

    Args:
        logits: (S, vocabulary).
        targets: (S,); places with target -100 are ignored.
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(precise, targets, reduction="sum")


def accumulate(runner: "Runner", step: Step, targets: int | None = None) -> Tensor:
    """Add the gradient of the step's loss to the parameters' gradients; return the loss, detached.

    The supervised tokens of the whole step are counted first, so each micro-batch has its exact
    weight. For `targets` see `Gradients`.
    """
    count = supervised_tokens(step) if targets is None else targets
    total = torch.zeros((), device=runner.model.device)
    for trees in step:
        loss = answer_loss(*runner.answer_logits(trees)) / count
        loss.backward()
        total = total + loss.detach()
    return total


def supervised_tokens(step: Step) -> int:
    """Count the tokens to predict in a step: the answers, and eos after each."""
    return sum(len(branch.answer) for trees in step for tree in trees for branch in tree.branches)
