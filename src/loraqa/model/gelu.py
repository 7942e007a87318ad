"""GPT-2's GELU in one pass over memory on a CPU, by `native/gelu.c`.

PyTorch's takes 4% of the time in answering and 6 to 7% of a training step in bf16, most of it for
the hyperbolic tangent; this one takes a quarter of that.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from loraqa.model import native

# Names of the tanh-GELU in configurations, one formula in different brackets; and their modules.
_NAMES = ("gelu_new", "gelu_pytorch_tanh", "gelu_accurate", "gelu_fast")
_MODULES = tuple(type(ACT2FN[name]) for name in _NAMES)


def fuse_gelu(model: nn.Module) -> None:
    """Replace transformers' tanh-GELUs, most of them five tensor operations, by one."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _MODULES):
                setattr(module, name, TanhGelu())


def compiled_gelu(model: PreTrainedModel) -> bool:
    """Whether a model's GELUs are computed by the compiled kernel: its last bits depend on that."""
    fused = any(isinstance(module, TanhGelu) for module in model.modules())
    return fused and _compiles(model.device, model.dtype)


class TanhGelu(nn.Module):
    """x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, of any shape, dtype and device."""

    def forward(self, x: Tensor) -> Tensor:
        """Of bf16 computed in fp32, and rounded once."""
        if not _compiles(x.device, x.dtype):
            return gelu(x, approximate="tanh")
        y: Tensor = _Compiled.apply(x)  # type: ignore[no-untyped-call]
        return y


class _Compiled(torch.autograd.Function):
    """For the gradient the slope is kept in the place of x, from the same pass."""

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


def _compiles(device: torch.device, dtype: torch.dtype) -> bool:
    return native.works("GELU", _check, device, dtype)


def _check(dtype: torch.dtype) -> None:
    """Raise `AssertionError` where the kernel does not compute what PyTorch computes."""
    x = torch.linspace(-9, 9, 999, dtype=dtype, requires_grad=True)
    y: Tensor = _Compiled.apply(x)  # type: ignore[no-untyped-call]
    expected = gelu(x, approximate="tanh")
    torch.testing.assert_close(_with_slope(y, x), _with_slope(expected, x))


def _with_slope(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return y, torch.autograd.grad(y.sum(), x)[0]
