"""Gradients on a GPU by CUDA graphs: all kernels of a micro-batch are launched as one.

A step of a small model is hundreds of small kernels, and launching them one by one takes several
times as long as running them. A graph always reads the same addresses, so batches are padded to a
few lengths, and each batch is copied into the input of the first batch of its length. Recording a
graph takes little longer than launching its kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad
from transformers import PreTrainedModel

from loraqa.lora.flat import FlatAdapter
from loraqa.model.choose import small_trees
from loraqa.model.loss import Launch, answer_loss, supervised_tokens
from loraqa.model.runner import Runner, TreeRunner, Use, tree_logits
from loraqa.prompt.batch import TreeBatch, collate_trees
from loraqa.prompt.plan import MicroBatch, Step, tree_tokens
from loraqa.prompt.tree import Tree
from loraqa.speed.gpu.padding import pad_batch, padded_length
from loraqa.speed.gpu.trees import TritonTreeAttention, triton_tree_attention
from loraqa.speed.gpu.visibility import token_sight

# GPT-2's 50,257 tokens are no multiple of 8 or more, which makes its head six times as slow.
_HEAD_ROWS = 64
# The loss leaves out this target.
_NO_TARGET = -100


def applies(runner: Runner, uses: frozenset[Use]) -> bool:
    """Return whether the runner trains, and attends by Triton kernels."""
    by_kernels = (
        isinstance(runner, TreeRunner) and runner.make_tree_attention is triton_tree_attention
    )
    return by_kernels and "training" in uses


def wrap(runner: TreeRunner) -> Runner:
    """Let the runner pad its batches and compute gradients by graphs.

    CUDA cannot load kernels while it records, so all kernels run once before.
    """
    runner.gradients(FlatAdapter(runner.model))([small_trees(runner.model)])()
    return replace(runner, count_tokens=padded_tokens, make_gradients=GraphedGradients)


def padded_tokens(trees: Sequence[Tree]) -> int:
    """Return how many tokens the model computes for these trees, padding included."""
    return padded_length(tree_tokens(trees))


class GraphedGradients:
    """`Gradients` that equal those of `accumulate`.

    The adapter is rounded to the model's dtype, and its gradient is added up, as one vector.
    """

    def __init__(self, runner: Runner, adapter: FlatAdapter) -> None:
        self._adapter = adapter
        self._loss = _AnswerLoss(runner.model)
        self._head = _padded_head(self._loss)
        self._rounded = adapter.vector.detach().to(runner.model.dtype)
        self._copies = {
            f"model.{name}": part.requires_grad_()
            for name, part in adapter.split(self._rounded).items()
        }
        self._recorder = Recorder()
        self._recordings: dict[tuple[int, int], _Recording] = {}

    def __call__(self, step: Step, targets: int | None = None) -> Launch:
        """See `Gradients`."""
        count = supervised_tokens(step) if targets is None else targets
        return partial(self._launch, [_Inputs.of(trees, count) for trees in step])

    def _launch(self, micro_batches: Sequence["_Inputs"]) -> Tensor:
        loss = torch.zeros((), device=self._rounded.device)
        for inputs in micro_batches:
            loss += self._add(inputs)
        return loss

    def _add(self, inputs: "_Inputs") -> Tensor:
        """Add the gradient of a micro-batch's share of the loss, and return this share."""
        kind = inputs.tokens, inputs.supervised
        if kind not in self._recordings:
            numbers = inputs.numbers.to(self._rounded.device)
            compute = partial(self._compute, inputs, numbers)
            self._recordings[kind] = _Recording(numbers, *self._recorder.record(compute))
        recording = self._recordings[kind]
        # A blocking copy would wait for the previous step.
        recording.numbers.copy_(inputs.numbers, non_blocking=True)
        recording.replay()
        return recording.loss

    def _compute(self, inputs: "_Inputs", numbers: Tensor) -> Tensor:
        """Compute a micro-batch on the device, by kernels alone."""
        with torch.no_grad():
            self._rounded.copy_(self._adapter.vector)
        loss: Tensor = functional_call(self._loss, self._head | self._copies, (inputs, numbers))
        gradients = torch.autograd.grad(loss, list(self._copies.values()))
        self._adapter.gradient += torch.cat([gradient.flatten() for gradient in gradients])
        return loss.detach()


@dataclass(frozen=True)
class _Recording:
    """A recorded computation, the memory of its inputs, and the memory of its loss."""

    numbers: Tensor
    replay: Callable[[], None]
    loss: Tensor


class Recorder:
    """Records computations as CUDA graphs, which share one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record `compute` without running it; return the function to replay it, and its result."""
        graph = torch.cuda.CUDAGraph()
        with (
            # Without this, a failed recording would leave its stream as the current one.
            torch.cuda.stream(torch.cuda.current_stream()),
            # Other threads may use the GPU meanwhile.
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result = compute()
        self._pool = graph.pool()
        return graph.replay, result


@dataclass(frozen=True)
class _Inputs:
    """A padded batch as one tensor, so that one copy brings it to the device.

    Attributes:
        tokens, supervised: how many tokens and supervised places there are, padding included.
        numbers: int32, one after another: ids, positions and sight (see `token_sight`) of the
            tokens, supervised places and their targets, and the number of targets in the step.
    """

    tokens: int
    supervised: int
    numbers: Tensor

    @classmethod
    def of(cls, trees: MicroBatch, targets_in_step: int) -> "_Inputs":
        batch = pad_batch(collate_trees(trees))
        tokens, supervised = batch.input_ids.shape[1], len(batch.supervised)
        targets = pad(batch.targets, (0, supervised - len(batch.targets)), value=_NO_TARGET)
        pieces = [
            *(batch.input_ids[0], batch.position_ids[0], *token_sight(batch.spans, tokens)),
            *(batch.supervised, targets, torch.tensor([targets_in_step])),
        ]
        return cls(tokens, supervised, torch.cat([piece.int() for piece in pieces]))

    def unpack(self, numbers: Tensor) -> tuple[TreeBatch, TritonTreeAttention, Tensor]:
        """Return batch, trees and number of targets of other numbers with the same lengths."""
        tokens, supervised, (total,) = numbers.split([6 * self.tokens, 2 * self.supervised, 1])
        ids, positions, *sight = tokens.view(6, -1).unbind()
        places, targets = supervised.view(2, -1).unbind()
        # A branch starts where the trunk of its tree ends, or after that.
        _, trunk_ends, starts, _ = sight
        in_branch = (starts >= trunk_ends)[None]
        batch = TreeBatch(ids[None], positions[None], (), places, targets.long(), in_branch)
        return batch, TritonTreeAttention(torch.stack(sight)), total


class _AnswerLoss(nn.Module):
    """A batch's share of the loss, as a function of the model's parameters."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        head = _plain_head(model)
        self.vocabulary = head.out_features if head else None

    def forward(self, inputs: _Inputs, numbers: Tensor) -> Tensor:
        batch, trees, targets_in_step = inputs.unpack(numbers)
        logits = tree_logits(self.model, batch, trees)
        return answer_loss(logits[:, : self.vocabulary], batch.targets) / targets_in_step


def _plain_head(model: Any) -> nn.Linear | None:
    """Return the head of a model if it is a single product."""
    head = model.get_output_embeddings()
    plain = isinstance(head, nn.Linear) and getattr(head, "bias", None) is None
    return head if plain else None


def _padded_head(loss: _AnswerLoss) -> dict[str, Tensor]:
    """Return the head's weight with zero rows added, up to a number for which products are fast."""
    head = _plain_head(loss.model)
    missing = -head.out_features % _HEAD_ROWS if head else 0
    if not head or not missing:
        return {}
    padded = pad(head.weight.detach(), (0, 0, 0, missing))
    everything = loss.named_parameters(remove_duplicate=False)
    return {name: padded for name, each in everything if each is head.weight}
