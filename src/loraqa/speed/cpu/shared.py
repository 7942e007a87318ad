"""Adapted projections that read the same tensor, computed together in training on a CPU.

Queries, keys and values read one tensor, and so do gate and up. One product multiplies it with the
matrices A of all of them, and one with the gradients of what comes out. The gradient of the tensor
is summed within products, not in passes of its own.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loraqa.lora.dora import DoraLinear
from loraqa.lora.layer import (
    LoraLinear,
    affine,
    as_matrix,
    lora_layers,
    scaled_product,
    thin_product,
)
from loraqa.model.choose import TOLERANCE, small_trees
from loraqa.model.runner import Runner, Use
from loraqa.speed.trial import DoesNotApplyError, check_close


def applies(runner: Runner, uses: frozenset[Use]) -> bool:
    """Return whether the model will be trained on a CPU."""
    return runner.model.device.type == "cpu" and "training" in uses


def wrap(runner: Runner) -> Runner:
    """Find the projections that share an input, compare them, and let them compute together.

    Raises:
        DoesNotApplyError: there are none.
    """
    groups = list(_groups(runner))
    if not groups:
        raise DoesNotApplyError("no adapted layers share their input")
    for layers in {
        tuple(layer.lora_B.shape for layer in group): group for group in groups
    }.values():
        _check(layers)
    for layers in groups:
        together = SharedInput(layers)
        for layer in layers:
            layer.forward = partial(together.output, layer)  # type: ignore[method-assign]
    return runner


def _groups(runner: Runner) -> Iterator[list[LoraLinear]]:
    """Yield layers that the model calls one after another with the same tensor."""
    calls: list[tuple[Tensor, LoraLinear]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: calls.append((*inputs, layer)))
        for layer in lora_layers(runner.model).values()
        # Each layer draws a dropout mask of its own, so their inputs differ. DoRA does more.
        if len(layer.parts) == 1 and not layer.dropout and not isinstance(layer, DoraLinear)
    ]
    try:
        with torch.no_grad():
            runner.answer_logits(small_trees(runner.model))
    finally:
        for hook in hooks:
            hook.remove()
    for _, group in groupby(calls, lambda call: (id(call[0]), call[1].rank, call[1].scaling)):
        layers = [layer for _, layer in group]
        if len(set(layers)) == len(layers) > 1:
            yield layers


def _check(layers: Sequence[LoraLinear]) -> None:
    base: Any = layers[0].base
    width, dtype = layers[0].in_features, base.weight.dtype
    x = torch.linspace(-1, 1, 3 * width, device="cpu").view(3, width).to(dtype).requires_grad_()
    inputs = [x, *(each for layer in layers for each in (layer.lora_A, layer.lora_B))]
    results = []
    for outputs in (_together(layers, x), [layer(x) for layer in layers]):
        slopes = [y.detach().roll(1, dims=0) for y in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, inputs, slopes)])
    for actual, expected in zip(*results, strict=True):
        check_close(actual, expected, TOLERANCE[dtype], "outputs or gradients")


class SharedInput:
    """Layers that are called one after another with the same tensor.

    The first call computes the outputs of all; each other call takes its own.
    """

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self._layers = layers
        self._x: Tensor | None = None
        self._outputs: dict[LoraLinear, Tensor] = {}

    def output(self, layer: LoraLinear, x: Tensor) -> Tensor:
        """Return the output of one of the layers for x (..., in)."""
        if not all(each.merged_weight is None and each.acts_everywhere for each in self._layers):
            return LoraLinear.forward(layer, x)
        if x is not self._x or layer not in self._outputs:
            self._x = x
            self._outputs = dict(zip(self._layers, _together(self._layers, x), strict=True))
        y = self._outputs.pop(layer)
        if not self._outputs:
            self._x = None
        return y


def _together(layers: Sequence[LoraLinear], x: Tensor) -> list[Tensor]:
    """Return the outputs of all layers for x (..., in)."""
    outputs = _SharedLowRank.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.shape[-1]),
        torch.cat([layer.lora_A for layer in layers]).to(x.dtype),
        layers,
        *(layer.lora_B.to(x.dtype) for layer in layers),
    )
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in outputs]


class _SharedLowRank(torch.autograd.Function):
    """yᵢ = x Mᵢ + bᵢ + s x Aᵢᵀ Bᵢᵀ for all layers i, whose A are stacked; Mᵢ and bᵢ are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, layers: Sequence[LoraLinear], *bs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.scale, ctx.layers = layers[0].scaling, layers
        hidden = scaled_product(ctx.scale, x, a.t())
        ctx.save_for_backward(x, a, hidden, *bs)
        outputs = [affine(x, _matrix(layer), layer.base.bias) for layer in layers]
        for y, h, b in zip(outputs, hidden.chunk(len(bs), dim=1), bs, strict=True):
            y.addmm_(h, b.t())
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, hidden, *bs = ctx.saved_tensors
        d_hidden = torch.cat(
            [scaled_product(ctx.scale, dy, b) for dy, b in zip(grads, bs, strict=True)], dim=1
        )
        d_bs = [
            thin_product(dy, h) for dy, h in zip(grads, hidden.chunk(len(bs), dim=1), strict=True)
        ]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = d_hidden @ a
            for dy, layer in zip(grads, ctx.layers, strict=True):
                dx.addmm_(dy, _matrix(layer).t())
        return dx, d_hidden.t() @ x, None, *d_bs


def _matrix(layer: LoraLinear) -> Tensor:
    return as_matrix(layer.base, layer.base.weight)
