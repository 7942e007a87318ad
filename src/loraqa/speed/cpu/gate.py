"""SwiGLU's product in one pass over memory on a CPU, by `native/gate.c`.

The MLPs of Llama and its relatives compute silu(gate) · up. PyTorch takes two passes for the value
and four for the gradient, and keeps silu(gate) for the latter.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu
from transformers.activations import ACT2FN

from loraqa.model.choose import TOLERANCE, small_trees
from loraqa.model.runner import Runner, Use
from loraqa.speed.cpu import native
from loraqa.speed.trial import DoesNotApplyError, check_close

_SILU: Any = type(ACT2FN["silu"])


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the model has a SiLU, and a dtype that the kernel knows."""
    on_cpu = native.supports(runner.model.device, runner.model.dtype)
    return on_cpu and any(isinstance(module, _SILU) for module in runner.model.modules())


def wrap(runner: Runner) -> Runner:
    """Compare the kernel with PyTorch's product, then put it into the model.

    Raises:
        DoesNotApplyError: the model does more with a SiLU than multiply it once with another
            tensor.
    """
    model = runner.model
    _check(model.dtype)
    silus = {name: module for name, module in model.named_modules() if isinstance(module, _SILU)}
    try:
        for name in silus:
            model.set_submodule(name, CompiledSilu(model.dtype))
        with torch.no_grad():
            runner.answer_logits(small_trees(model))
    except Exception as problem:
        for name, module in silus.items():
            model.set_submodule(name, module)
        if isinstance(problem, AttributeError | TypeError):
            raise DoesNotApplyError("the model's SiLU is not the gate of a product") from None
        raise
    return runner


def _check(dtype: torch.dtype) -> None:
    x = torch.linspace(-9, 9, 999, dtype=dtype, device="cpu", requires_grad=True)
    up = torch.linspace(2, -1, 999, dtype=dtype, device="cpu", requires_grad=True)
    actual, expected = CompiledSilu(dtype)(x) * up, silu(x) * up
    check_close(actual, expected, TOLERANCE[dtype], "outputs")
    slopes, expected_slopes = (torch.autograd.grad(y.sum(), (x, up)) for y in (actual, expected))
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        check_close(slope, expected_slope, TOLERANCE[dtype], "gradients")


class CompiledSilu(nn.Module):
    """x s(x), s the logistic function, of a tensor that is multiplied with another one then.

    Args:
        dtype: tensors of this dtype on a CPU wait for the other factor, others are computed by
            PyTorch at once.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> "Tensor | Gate":
        """Return the SiLU of x, or a `Gate`."""
        return Gate(x) if x.device.type == "cpu" and x.dtype == self.dtype else silu(x)


@dataclass(frozen=True)
class Gate:
    """The SiLU of a tensor x, which is computed when it is multiplied with a tensor like x."""

    x: Tensor

    def __mul__(self, up: Tensor) -> Tensor:
        product: Tensor = _Gate.apply(self.x, up)  # type: ignore[no-untyped-call]
        return product

    __rmul__ = __mul__


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor) -> Tensor:
        if x.shape != up.shape or x.dtype != up.dtype:
            raise TypeError("both factors must have the same shape and dtype")
        x, up = x.contiguous(), up.contiguous()
        y = torch.empty_like(x)
        native.call("gated", x.dtype, x, up, y, x.numel())
        ctx.save_for_backward(x, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, up = ctx.saved_tensors
        dy, dx, d_up = grads[0].contiguous(), torch.empty_like(x), torch.empty_like(up)
        native.call("gated_gradient", x.dtype, x, up, dy, dx, d_up, x.numel())
        return dx, d_up
