"""Training an activated LoRA on branches alone, on a CPU.

The update does not act on trunks, so their keys and values are constants: those of the frozen base.
They are computed first, without the update and without gradients. Then the branches alone run
forward and backward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, chain

import torch
from torch import Tensor

from loraqa.lora.activated import NO_TOKENS, acting_on, invocation_of
from loraqa.lora.flat import FlatAdapter
from loraqa.model.loss import Gradients
from loraqa.model.runner import Runner, StateRecorder, TreeRunner, Use, plain_gradients
from loraqa.model.trees import branch_mask
from loraqa.prompt.batch import TreeSpan, collate_trees
from loraqa.prompt.tree import TokenIds, Tree
from loraqa.speed.cpu.products import Block, attend_blocks

Trunks = Callable[[Sequence[TokenIds]], list[Tensor]]
"""Returns the keys and values of each trunk, (layers, 2, key heads, its tokens, head size)."""


def applies(runner: Runner, uses: frozenset[Use]) -> bool:
    """Return whether the runner trains an activated LoRA on trees, on a CPU."""
    trains = isinstance(runner, TreeRunner) and "training" in uses
    return trains and runner.model.device.type == "cpu" and bool(invocation_of(runner.model))


def wrap(runner: TreeRunner) -> Runner:
    """Let the runner compute gradients on branches alone."""
    return replace(runner, make_gradients=BranchGradients(partial(trunk_states, runner)))


@torch.no_grad()
def trunk_states(runner: TreeRunner, trunks: Sequence[TokenIds]) -> list[Tensor]:
    """Compute the keys and values of trunks by the frozen base alone. This is a `Trunks`."""
    model = runner.model
    batch = collate_trees([Tree(trunk, (), passage=0, window=(0, 0)) for trunk in trunks])
    recorded = StateRecorder(runner.make_tree_attention(batch, model.device))
    with acting_on(NO_TOKENS):
        model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            tree_attention=recorded,
            logits_to_keep=batch.supervised,
            use_cache=False,
        )
    states = torch.stack([torch.stack(recorded.states[n]) for n in sorted(recorded.states)])
    return [states[..., span.start : span.end, :] for span in batch.spans]


@dataclass(frozen=True)
class BranchGradients:
    """Makes `Gradients` that equal those of `accumulate`."""

    trunks: Trunks

    def __call__(self, runner: Runner, adapter: FlatAdapter) -> Gradients:
        """See `Runner.gradients`."""
        return plain_gradients(_BranchRunner(runner.model, trunks=self.trunks), adapter)


@dataclass(frozen=True)
class _BranchRunner(TreeRunner):
    """Computes the logits of branches after their trunks."""

    trunks: Trunks = field(kw_only=True)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """See `Runner`."""
        batch = collate_trees(trees)
        (in_branch,) = batch.in_branch
        places = in_branch.cumsum(0) - 1
        logits: Tensor = self.model(
            input_ids=batch.input_ids[:, in_branch],
            position_ids=batch.position_ids[:, in_branch],
            tree_attention=_BranchAttention(batch.spans, self.trunks([t.trunk for t in trees])),
            logits_to_keep=places[batch.supervised],
            use_cache=False,
        ).logits
        return logits[0], batch.targets


class _BranchAttention:
    """The `TreeAttention` of branches alone; each sees its trunk, which is constant, and itself.

    Args:
        spans: the places of the trees in the packed sequence, trunks included.
        trunks: the keys and values of each trunk (see `Trunks`).
    """

    def __init__(self, spans: Sequence[TreeSpan], trunks: Sequence[Tensor]) -> None:
        self._trunks = trunks
        self._lengths = [sum(span.branches) for span in spans]
        ends = accumulate(self._lengths)
        self._blocks = [
            Block(slice(end - length, end), slice(span.start, span.end), branch_mask(span))
            for span, length, end in zip(spans, self._lengths, ends, strict=True)
        ]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`."""
        keys, values = self._after_trunks(layer, 0, key), self._after_trunks(layer, 1, value)
        return attend_blocks(query, keys, values, self._blocks, scaling)

    def _after_trunks(self, layer: int, which: int, states: Tensor) -> Tensor:
        """Put the states of a tree's branches after those of its trunk, tree by tree."""
        trunks = (trunk[layer, which][None] for trunk in self._trunks)
        trees = zip(trunks, states.split(self._lengths, dim=2), strict=True)
        return torch.cat(list(chain.from_iterable(trees)), dim=2)
