"""GPT-2's GELU in one pass over memory on a CPU, by `native/gelu.c`.

PyTorch's own takes 4% of the time in answering and 6 to 7% of a training step in bf16, most of it
for the hyperbolic tangent. The C kernel takes a quarter of that.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu

from loraqa.model.runner import Runner, Use
from loraqa.speed.cpu import native
from loraqa.speed.trial import check_each_element


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the model has a fused tanh-GELU and a dtype that the kernel knows."""
    on_cpu = native.supports(runner.model.device, runner.model.dtype)
    return on_cpu and any(map(_is_tanh_gelu, runner.model.modules()))


def wrap(runner: Runner) -> Runner:
    """Compare the kernel with PyTorch's GELU, then put it into the model."""
    dtype = runner.model.dtype
    x = torch.linspace(-9, 9, 999, dtype=dtype, device="cpu", requires_grad=True)
    actual, expected = CompiledGelu(dtype)(x), gelu(x, approximate="tanh")
    check_each_element(actual, expected, "outputs")
    slope, expected_slope = (torch.autograd.grad(y.sum(), x)[0] for y in (actual, expected))
    check_each_element(slope, expected_slope, "gradients")
    for module in list(runner.model.modules()):
        for name, child in module.named_children():
            if _is_tanh_gelu(child):
                setattr(module, name, CompiledGelu(dtype))
    return runner


def _is_tanh_gelu(module: nn.Module) -> bool:
    return isinstance(module, nn.GELU) and module.approximate == "tanh"


class CompiledGelu(nn.Module):
    """x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2 of a tensor of any shape.

    Args:
        dtype: tensors of this dtype on a CPU go through the kernel, others through PyTorch's GELU.
            bf16 is computed in fp32 and rounded once.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like x."""
        if x.device.type != "cpu" or x.dtype != self.dtype:
            return gelu(x, approximate="tanh")
        y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
        return y


class _Gelu(torch.autograd.Function):
    """The forward pass also computes the derivative, and saves it instead of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        if ctx.needs_input_grad[0]:
            slope = torch.empty_like(x)
            native.call("gelu_and_slope", x.dtype, x, y, slope, x.numel())
            ctx.save_for_backward(slope)
        else:
            native.call("gelu", x.dtype, x, y, x.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dy,) = grads
        (slope,) = ctx.saved_tensors
        dx: Tensor = dy * slope
        return dx
