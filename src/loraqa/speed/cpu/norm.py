"""Root mean square norms in one pass over memory on a CPU, by `native/norm.c`.

Llama, Qwen, Mistral and their relatives have two or more in each layer. PyTorch takes six
operations for the value, and twice as many for the gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loraqa.model.choose import TOLERANCE
from loraqa.model.runner import Runner, Use
from loraqa.speed.cpu import native
from loraqa.speed.trial import check_close


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the model has such norms, and a dtype that the kernel knows."""
    on_cpu = native.supports(runner.model.device, runner.model.dtype)
    return on_cpu and any(_epsilon(module) is not None for module in runner.model.modules())


def wrap(runner: Runner) -> Runner:
    """Compare the kernel with a norm of each class and width, then put it into the model."""
    norms = {
        name: (module, epsilon)
        for name, module in runner.model.named_modules()
        if (epsilon := _epsilon(module)) is not None
    }
    for norm, epsilon in {(type(n), len(n.weight)): (n, e) for n, e in norms.values()}.values():
        _check(norm, CompiledNorm(norm, epsilon))
    for name, (norm, epsilon) in norms.items():
        runner.model.set_submodule(name, CompiledNorm(norm, epsilon))
    return runner


def _epsilon(module: Any) -> float | None:
    """Return ε of a module that looks like a root mean square norm, else None.

    Its one weight is a frozen vector, and ε has one of the two names that all of transformers uses.
    """
    weights = dict(module.named_parameters())
    if isinstance(module, nn.LayerNorm) or list(weights) != ["weight"]:
        return None
    weight: Tensor = weights["weight"]
    if weight.dim() != 1 or weight.requires_grad:
        return None
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _check(norm: Any, compiled: nn.Module) -> None:
    """Compare on rows that have no mean of 0, and on some so small that ε matters."""
    ramp = torch.linspace(-1, 2, 2 * len(norm.weight), dtype=norm.weight.dtype, device="cpu")
    slope = ramp.flip(0).view(2, -1)
    for size in (1e-3, 1.0, 9.0):
        x = (size * ramp).view(2, -1).requires_grad_()
        actual, expected = compiled(x), norm(x)
        check_close(actual, expected, TOLERANCE[x.dtype], "outputs")
        (gradient,), (wanted,) = (torch.autograd.grad(y, x, slope) for y in (actual, expected))
        check_close(gradient, wanted, TOLERANCE[x.dtype], "gradients")


class CompiledNorm(nn.Module):
    """w x / √(mean of x² + ε) over the last dimension of a tensor of any shape.

    bf16 is computed in fp32 and rounded once.

    Args:
        norm: the norm to replace, with its frozen w as `weight`. It gets tensors of another dtype
            than that of w.
        epsilon: ε.
    """

    def __init__(self, norm: nn.Module, epsilon: float) -> None:
        super().__init__()
        self.weight = norm.get_parameter("weight")
        self.epsilon = epsilon
        # Its method, because as a module its weight would be listed twice.
        self._plain = norm.forward

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like x."""
        if x.device.type != "cpu" or x.dtype != self.weight.dtype:
            plain: Tensor = self._plain(x)
            return plain
        y: Tensor = _Norm.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        native.call("norm", x.dtype, x, weight, y, *_shape(x), epsilon)
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        dx, dy = torch.empty_like(x), grads[0].contiguous()
        native.call("norm_gradient", x.dtype, x, weight, dy, dx, *_shape(x), ctx.epsilon)
        return dx, None, None


def _shape(x: Tensor) -> tuple[int, int]:
    width = x.shape[-1]
    return x.numel() // width, width
