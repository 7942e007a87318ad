"""Gradients on a GPU by CUDA graphs: all kernels of a micro-batch are launched as one.

A small model's step is hundreds of small kernels, and launching them one by one takes several
times as long as they do. A graph repeats kernels on the same memory, so batches are padded to few
lengths, and their numbers copied to where the first of that length lay. To record a graph takes
little longer than to launch its kernels.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad

from loraqa.errors import in_a_line
from loraqa.lora.layer import lora_layers
from loraqa.model.buckets import fill_bucket
from loraqa.model.choose import small_trees, why_gradients_differ
from loraqa.model.kernel_trees import KernelTrees, token_sight
from loraqa.model.last_layer import wanted_logits
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory
from loraqa.model.runner import KernelRunner, Runner
from loraqa.prompt.batch import TreeBatch, collate_trees
from loraqa.prompt.plan import MicroBatch, Step
from loraqa.train.flat import FlatAdapter
from loraqa.train.loss import (
    Gradients,
    Launch,
    Loss,
    accumulate,
    answer_loss,
    summed_loss,
    supervised_tokens,
)

logger = logging.getLogger("loraqa")

# GPT-2's 50,257 tokens are a multiple of nothing, so that its head takes six times as long.
_HEAD_ROWS = 64
# What the loss leaves out.
_NO_TARGET = -100


@explaining_lack_of_memory("while a training step was tried", ADVICE_TO_LOADERS)
def choose_gradients(runner: Runner, adapter: FlatAdapter, loss: Loss = answer_loss) -> Gradients:
    """How to compute gradients of a model's adapter: by graphs where they work.

    Raises:
        LackOfMemoryError: not even small trees fit into memory.
    """

    def plain(step: Step) -> Launch:
        return partial(accumulate, runner, step, loss)

    if not isinstance(runner, KernelRunner) or loss is not answer_loss:
        return plain
    graphed = GraphedGradients(runner, adapter)
    with _without_dropout(runner.model):
        reason = _why_wrong(graphed, plain, adapter.gradient, [small_trees(runner.model)])
    if reason is None:
        graphed.forget()
        return graphed
    logger.info("No CUDA graphs are used: %s.", reason)
    return plain


def _why_wrong(graphed: Gradients, plain: Gradients, gradient: Tensor, step: Step) -> str | None:
    """Why graphs, made and then used again, do not give the gradients that are computed without."""
    found = []
    try:
        # The first also loads all kernels, which cannot be while a graph is recorded.
        for gradients in (plain, graphed, graphed):
            gradients(step)()
            found.append(gradient.clone())
            gradient.zero_()
    except torch.OutOfMemoryError:
        raise
    # Whatever a model does that cannot be recorded.
    except Exception as problem:
        gradient.zero_()
        return in_a_line(problem)
    return why_gradients_differ(found[1], found[0]) or why_gradients_differ(found[2], found[0])


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Padding is drawn for too, so that other numbers would be drawn for tokens."""
    layers = lora_layers(model).values()
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.train(training)


class GraphedGradients:
    """`Gradients` of the answers' loss, as `accumulate` gives them.

    The adapter is rounded to the model's dtype, and its gradient added up, as one vector.
    """

    def __init__(self, runner: KernelRunner, adapter: FlatAdapter) -> None:
        self._adapter = adapter
        self._loss = _AnswerLoss(runner)
        self._head = _padded_head(self._loss)
        self._rounded = adapter.vector.detach().to(runner.model.dtype)
        self._copies = {
            f"model.{name}": part.requires_grad_()
            for name, part in adapter.split(self._rounded).items()
        }
        self.forget()

    def forget(self) -> None:
        """Record anew what is to come."""
        self._recorder = Recorder()
        self._recordings: dict[tuple[int, int], _Recording] = {}

    def __call__(self, step: Step) -> Launch:
        """See `Gradients`."""
        targets = supervised_tokens(step)
        return partial(self._launch, [_Inputs.of(trees, targets) for trees in step])

    def _launch(self, micro_batches: Sequence["_Inputs"]) -> Tensor:
        loss = torch.zeros((), device=self._rounded.device)
        for inputs in micro_batches:
            loss += self._add(inputs)
        return loss

    def _add(self, inputs: "_Inputs") -> Tensor:
        """Add the gradient of a micro-batch's share of the loss, which is returned."""
        kind = inputs.tokens, inputs.wanted
        if kind not in self._recordings:
            numbers = inputs.numbers.to(self._rounded.device)
            compute = partial(self._compute, inputs, numbers)
            self._recordings[kind] = _Recording(numbers, *self._recorder.record(compute))
        recording = self._recordings[kind]
        # Blocking, it would wait for the step before.
        recording.numbers.copy_(inputs.numbers, non_blocking=True)
        recording.replay()
        return recording.loss

    def _compute(self, inputs: "_Inputs", numbers: Tensor) -> Tensor:
        """The same on the device, by kernels alone."""
        with torch.no_grad():
            self._rounded.copy_(self._adapter.vector)
        loss: Tensor = functional_call(self._loss, self._head | self._copies, (inputs, numbers))
        gradients = torch.autograd.grad(loss, list(self._copies.values()))
        self._adapter.gradient += torch.cat([gradient.flatten() for gradient in gradients])
        return loss.detach()


@dataclass(frozen=True)
class _Recording:
    """A recorded computation: where it reads its numbers, and where it leaves its loss."""

    numbers: Tensor
    replay: Callable[[], None]
    loss: Tensor


class Recorder:
    """Records computations as CUDA graphs, which share the memory of what they make."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What computes it again, and where the result is then. Nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        with (
            # Where recording fails, the stream that it took would stay the current one.
            torch.cuda.stream(torch.cuda.current_stream()),
            # Another thread may go on with its own work meanwhile.
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result = compute()
        self._pool = graph.pool()
        return graph.replay, result


@dataclass(frozen=True)
class _Inputs:
    """A padded batch as one tensor of numbers, so that one copy brings it to the device.

    Attributes:
        tokens, wanted: how many there are, padding included.
        numbers: int32, one after another: ids, positions and sight (see `token_sight`) of the
            tokens, places and targets of the wanted ones, and how many targets the step has.
    """

    tokens: int
    wanted: int
    numbers: Tensor

    @classmethod
    def of(cls, trees: MicroBatch, targets_in_step: int) -> "_Inputs":
        batch = fill_bucket(collate_trees(trees))
        tokens, wanted = batch.input_ids.shape[1], len(batch.supervised)
        targets = pad(batch.targets, (0, wanted - len(batch.targets)), value=_NO_TARGET)
        pieces = [
            *(batch.input_ids[0], batch.position_ids[0], *token_sight(batch.spans, tokens)),
            *(batch.supervised, targets, torch.tensor([targets_in_step])),
        ]
        return cls(tokens, wanted, torch.cat([piece.int() for piece in pieces]))

    def unpack(self, numbers: Tensor) -> tuple[TreeBatch, KernelTrees, Tensor]:
        """Batch, trees and number of targets from other numbers of the same kind."""
        tokens, wanted, (total,) = numbers.split([6 * self.tokens, 2 * self.wanted, 1])
        ids, positions, *sight = tokens.view(6, -1).unbind()
        places, targets = wanted.view(2, -1).unbind()
        batch = TreeBatch(ids[None], positions[None], (), places, targets.long())
        return batch, KernelTrees(torch.stack(sight), places), total


class _AnswerLoss(nn.Module):
    """A batch's share of the loss, as a function of the model's parameters."""

    def __init__(self, runner: KernelRunner) -> None:
        super().__init__()
        self.model = runner.model
        head = _plain_head(runner.model)
        self.vocabulary = head.out_features if head else None

    def forward(self, inputs: _Inputs, numbers: Tensor) -> Tensor:
        batch, trees, targets_in_step = inputs.unpack(numbers)
        logits = wanted_logits(self.model, batch, trees)
        return summed_loss(logits[:, : self.vocabulary], batch.targets) / targets_in_step


def _plain_head(model: Any) -> nn.Linear | None:
    """The head of a model, if it is one product."""
    head = model.get_output_embeddings()
    plain = isinstance(head, nn.Linear) and getattr(head, "bias", None) is None
    return head if plain else None


def _padded_head(loss: _AnswerLoss) -> dict[str, Tensor]:
    """The head's weight, with rows of zeros up to a number for which products are fast."""
    head = _plain_head(loss.model)
    missing = -head.out_features % _HEAD_ROWS if head else 0
    if not head or not missing:
        return {}
    padded = pad(head.weight.detach(), (0, 0, 0, missing))
    everything = loss.named_parameters(remove_duplicate=False)
    return {name: padded for name, each in everything if each is head.weight}
