"""GELU for training on a CPU, compiled.

PyTorch's own takes 6 to 7% of GPT-2's training step in bf16, most of it for the hyperbolic tangent.
With tanh(u) = 2σ(2u) - 1 GELU is x·σ(2u), which takes a third of that, but only with its slope in a
single pass over memory; so it takes a compiler.
"""

import logging
import math
import timeit
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from loraqa.errors import in_a_line

logger = logging.getLogger("loraqa")

# Of Hendrycks and Gimpel (2016): 2u = x (_LINEAR + _CUBIC x²).
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715
# Weights times tokens of a training that takes minutes, of which it saves more than the few seconds
# that compiling takes.
_WORTH_IT = 2e13
# A layer of GPT-2 over 512 tokens.
_ELEMENTS = 512 * 3072
# Without what would take longer than all the rest: trial compilations for each set of vector
# instructions (what a compiler cannot use fails with the kernel, and is caught), and precompiling
# headers, which pays for many kernels, not for one.
_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "cpp.vec_isa_ok": True,
    "cpp_cache_precompile_headers": False,
}
_DTYPES = (torch.bfloat16, torch.float32)
_PYTORCHS = nn.GELU(approximate="tanh")


def compile_gelu(model: PreTrainedModel, tokens: int) -> bool:
    """Let a model on a CPU compute its tanh-GELUs by a compiled kernel, if that works and pays.

    Args:
        model: has its tanh-GELUs as `nn.GELU`; others stay as they are.
        tokens: how many it will compute in training.

    Returns:
        Whether it does.
    """
    if model.device.type != "cpu" or model.num_parameters() * tokens < _WORTH_IT:
        return False
    gelus = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.GELU) and child.approximate == _PYTORCHS.approximate
    ]
    if not gelus or model.dtype not in _DTYPES or not _compiles(model.dtype):
        return False
    for module, name in gelus:
        setattr(module, name, CompiledGelu())
    return True


class CompiledGelu(nn.Module):
    """tanh-GELU of bf16 or fp32, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Computed in fp32, and rounded once."""
        y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
        return y


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # In one dimension, and as no view: one compilation is good for any number of elements.
        y, slope = _compiled()(x.reshape(-1).data)
        ctx.save_for_backward(slope.view(x.shape))
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dy,) = grads
        (slope,) = ctx.saved_tensors
        dx: Tensor = dy * slope
        return dx


def _value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """Both from one exponential, and the slope kept in the place of x."""
    precise = x.float()
    square = precise * precise
    twice_u = precise * (_LINEAR + _CUBIC * square)
    # Of σ(-|2u|), which is small where 1 - σ(|2u|) would be lost in rounding.
    small = torch.exp(-twice_u.abs())
    larger = 1 / (1 + small)
    gate = torch.where(twice_u < 0, small * larger, larger)
    slope = gate + precise * small * larger * larger * (_LINEAR + 3 * _CUBIC * square)
    return (precise * gate).to(x.dtype), slope.to(x.dtype)


@cache
def _compiled() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    from torch._inductor import list_options

    # PyTorch refuses what its version does not know.
    known = list_options()
    options = {name: value for name, value in _OPTIONS.items() if name in known}
    compiled: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.compile(
        _value_and_slope, dynamic=True, options=options
    )
    return compiled


@cache
def _compiles(dtype: torch.dtype) -> bool:
    """Whether compiling gives something to use; a line says why not."""
    reason = _why_not(dtype)
    if reason is not None:
        logger.info("GELU is not compiled: %s.", reason)
    return reason is None


def _why_not(dtype: torch.dtype) -> str | None:
    """Compile, and look at what comes out."""
    x = torch.linspace(-9, 9, _ELEMENTS, dtype=dtype, requires_grad=True)
    try:
        torch.testing.assert_close(_with_gradient(CompiledGelu(), x), _with_gradient(_PYTORCHS, x))
    # Whatever a compiler comes up with, or the lack of one.
    except Exception as problem:
        return in_a_line(problem)
    # Half the time where it is compiled, several times as much where compiling is turned off: too
    # far apart for noise to let two runs differ.
    faster = _seconds(CompiledGelu(), x) < _seconds(_PYTORCHS, x)
    return None if faster else "it is no faster than PyTorch's"


def _seconds(activation: nn.Module, x: Tensor) -> float:
    """What it takes with its gradient, unless other work gets in its way."""
    return min(timeit.repeat(lambda: _with_gradient(activation, x), number=1, repeat=10))


def _with_gradient(activation: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = activation(x)
    return y, torch.autograd.grad(y.sum(), x)[0]
