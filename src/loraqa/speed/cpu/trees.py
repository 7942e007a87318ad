"""Attention over packed trees in one C kernel on a CPU, `native/trees.c`.

Each branch is multiplied with its trunk and itself alone, and no weights are kept for the gradient.
"""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loraqa.model.runner import Runner, TreeRunner, Use
from loraqa.prompt.batch import TreeBatch
from loraqa.speed.cpu import native
from loraqa.speed.trial import check_trees


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the runner computes trees, with a dtype that the kernel knows."""
    model = runner.model
    return isinstance(runner, TreeRunner) and native.supports(model.device, model.dtype)


def wrap(runner: TreeRunner) -> Runner:
    """Compare the kernel with plain attention, then let the runner use it."""
    check_trees(CompiledTreeAttention, runner.model.device, runner.model.dtype)
    return replace(runner, make_tree_attention=CompiledTreeAttention)


class CompiledTreeAttention:
    """`PackedTreeAttention` by a C kernel.

    Args:
        batch: the packed trees.
    """

    def __init__(self, batch: TreeBatch, _: torch.device) -> None:
        runs = [(span.trunk, *span.branches) for span in batch.spans]
        starts = [span.start for span in batch.spans]
        self._trees = (
            _places([length for lengths in runs for length in lengths]),
            _places([0, *accumulate(map(len, runs))]),
            _places(starts),
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`.

        Raises:
            ValueError: values are not as wide as keys and queries.
        """
        if key.shape != value.shape or key.shape[-1] != query.shape[-1]:
            raise ValueError("queries, keys and values differ in their width")
        states = (each.squeeze(0).transpose(0, 1) for each in (query, key, value))
        attended: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
            *states, self._trees, float(scaling)
        )
        return attended.transpose(0, 1)[None]


class _Attend(torch.autograd.Function):
    """Query is (tokens, heads, head size), key and value (tokens, key heads, head size)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        trees: tuple[Tensor, ...],
        scaling: float,
    ) -> Tensor:
        states = [each.contiguous() for each in (query, key, value)]
        attended = torch.empty_like(states[0])
        # Memory for numbers in fp32, which only the kernel reads and writes.
        logs = attended.new_empty(*query.shape[:2], 4 // query.element_size())
        sizes = len(trees[2]), query.shape[1], *key.shape[1:]
        native.call_with_memory(
            *("attend_trees", query.dtype, *states, *trees, attended, logs, *sizes, scaling)
        )
        ctx.save_for_backward(*states, logs)
        ctx.trees, ctx.sizes, ctx.scaling = trees, sizes, scaling
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *states, logs = ctx.saved_tensors
        slopes = [torch.empty_like(each) for each in states]
        native.call_with_memory(
            "attend_trees_gradient",
            states[0].dtype,
            *(*states, grads[0].contiguous(), logs, *ctx.trees, *slopes, *ctx.sizes, ctx.scaling),
        )
        return *slopes, None, None


def _places(places: list[int]) -> Tensor:
    return torch.tensor(places, device="cpu")
