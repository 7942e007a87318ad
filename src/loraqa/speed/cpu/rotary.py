"""Rotary position embedding in one pass over memory on a CPU, by `native/rotary.c`.

PyTorch takes ten operations for the queries and keys of a layer, and more for their gradients.
"""

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loraqa.model.choose import TOLERANCE
from loraqa.model.runner import Runner, Use
from loraqa.speed.cpu import native
from loraqa.speed.trial import check_close

# What families of transformers call the function that rotates queries and keys.
_NAME = "apply_rotary_pos_emb"

Rotate = Callable[..., tuple[Tensor, Tensor]]
"""Rotates queries and keys, (B, heads, T, d), by cosines and sines, (B, T, d)."""


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the model's attention rotates, with a dtype that the kernel knows."""
    on_cpu = native.supports(runner.model.device, runner.model.dtype)
    return on_cpu and any(map(_rotates, runner.model.modules()))


def wrap(runner: Runner) -> Runner:
    """Compare the kernel with the model's own function, then let the attention call it.

    The function is a global of the Python module that defines the attention. So the attention of
    this model, and of no other, gets a `forward` with other globals.
    """
    attentions = list(filter(_rotates, runner.model.modules()))
    for rotate in {_own_rotation(module) for module in attentions}:
        _check(rotate, runner.model.dtype)
    for module in attentions:
        module.forward = _with_kernel(module)
    return runner


def _rotates(module: nn.Module) -> bool:
    forward = type(module).forward
    return inspect.isfunction(forward) and _NAME in forward.__code__.co_names


def _own_rotation(module: nn.Module) -> Rotate:
    rotate: Rotate = type(module).forward.__globals__[_NAME]
    return rotate


def _with_kernel(module: nn.Module) -> MethodType:
    plain: Any = type(module).forward
    names = {**plain.__globals__, _NAME: partial(rotate_or, _own_rotation(module))}
    forward = FunctionType(
        plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__
    )
    forward.__kwdefaults__ = plain.__kwdefaults__
    return MethodType(forward, module)


def _check(rotate: Rotate, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (
        torch.randn(1, 3, heads, 8, generator=generator, device="cpu").to(dtype).transpose(1, 2)
        for heads in (4, 2)
    )
    inputs = query.requires_grad_(), key.requires_grad_()
    angles = torch.randn(1, 3, 4, generator=generator, device="cpu").repeat(1, 1, 2)
    results = []
    for each in (partial(rotate_or, rotate), rotate):
        rotated = each(*inputs, angles.cos().to(dtype), angles.sin().to(dtype))
        gradients = torch.autograd.grad([(y * y.detach().roll(1)).sum() for y in rotated], inputs)
        results.append((*rotated, *gradients))
    for actual, expected in zip(*results, strict=True):
        check_close(actual, expected, TOLERANCE[dtype], "rotations or gradients")


def rotate_or(
    plain: Rotate, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """Rotate by the kernel where it can, else by the model's own function.

    Args:
        plain: the model's own function.
        query, key: (B, heads, T, d).
        cos, sin: (B, T, d). Where they are narrower, a part of each head is rotated.
        args, options: what families pass besides; the kernel knows none.
    """
    shapes = {cos.shape, sin.shape, *(x.shape[:1] + x.shape[2:] for x in (query, key))}
    alike = all(each.dtype == query.dtype and each.is_cpu for each in (query, key, cos, sin))
    if args or options or not alike or len(shapes) > 1 or query.dim() != 4:
        return plain(query, key, cos, sin, *args, **options)
    cos, sin = cos.contiguous(), sin.contiguous()
    rotated, rotated_key = (
        _Rotate.apply(states.transpose(1, 2), cos, sin).transpose(1, 2)  # type: ignore[no-untyped-call]
        for states in (query, key)
    )
    return rotated, rotated_key


class _Rotate(torch.autograd.Function):
    """Rotate (B, T, heads, d) by cosines and sines (B, T, d)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _call("rotate", x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _call("rotate_back", grads[0], *ctx.saved_tensors), None, None


def _call(kernel: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    native.call(kernel, x.dtype, x, cos, sin, y, x[..., 0, 0].numel(), *x.shape[2:])
    return y
