"""Frozen linear layers whose weights are whole numbers of one byte.

Each row of W, which gives one output, is kept as W ≈ step · codes: the codes are from -127 to 127,
and 127 steps are the row's largest size (symmetric quantisation by the absolute maximum, as in
LLM.int8(), Dettmers et al., 2022, arXiv:2208.07339, section 2). Products are not computed in int8:
W is computed from its codes each time it is read, one layer at a time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.errors import InputError
from loraqa.lora.layer import affine, as_matrix

_LARGEST = 127


class Int8Layer(nn.Module):
    """A frozen linear layer y = W x + b with an int8 W.

    `codes` have the layout of W, and `steps` one number for each output, in the dtype of W. Both
    are parameters, so that they are counted, moved and hashed with the others.
    """

    codes: nn.Parameter
    steps: nn.Parameter
    bias: nn.Parameter | None

    @property
    def weight(self) -> Tensor:
        """W in its own layout, computed at each call."""
        return self.codes.to(self.steps.dtype).mul_(self.steps)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out), both in the dtype of W."""
        y: Tensor = _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), self)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])


class Int8Linear(Int8Layer, nn.Linear):  # type: ignore[misc, override]
    """An `nn.Linear` with an int8 weight."""


class Int8Conv1D(Int8Layer, Conv1D):  # type: ignore[misc]
    """A `Conv1D` with an int8 weight."""


class _FrozenLinear(torch.autograd.Function):
    """y = x M + b; M (in, out) is not kept for the gradient of x, but computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Layer) -> Tensor:
        ctx.layer = layer
        return affine(x, as_matrix(layer, layer.weight), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dy,) = grads
        return dy @ as_matrix(ctx.layer, ctx.layer.weight).t(), None


def is_quantisable(model: PreTrainedModel, layer: nn.Module) -> bool:
    """Return whether a module is a linear layer, and not the output head.

    The head often shares its weight with the embedding. Classes derived from a linear layer are
    left alone, since they may compute something else.
    """
    return type(layer) in (nn.Linear, Conv1D) and layer is not model.get_output_embeddings()


@torch.no_grad()
def quantise(name: str, layer: nn.Linear | Conv1D, weight: Tensor) -> None:
    """Turn a layer into an `Int8Layer`, in place.

    Args:
        name: the layer's name, for messages.
        layer: the layer; its own weight, which may hold nothing yet, is dropped.
        weight: W in the layer's layout.

    Raises:
        InputError: W holds a NaN or an infinity.
    """
    largest = weight.abs().amax(dim=0 if isinstance(layer, Conv1D) else 1, keepdim=True)
    if not largest.isfinite().all():
        raise InputError(
            f"The weight of {name} holds a NaN or an infinity, which model.quantisation=int8 "
            "cannot keep; use another base model."
        )
    # A row of zeros gets any step but 0.
    steps = (largest / _LARGEST).clamp(min=torch.finfo(weight.dtype).tiny)
    # In bfloat16 the quotient would be rounded twice.
    exact = torch.promote_types(weight.dtype, torch.float32)
    codes = (weight.to(exact) / steps.to(exact)).round_().clamp_(-_LARGEST, _LARGEST)
    codes = codes.to(torch.int8)
    del layer.weight
    layer.__class__ = Int8Conv1D if isinstance(layer, Conv1D) else Int8Linear
    layer.codes = nn.Parameter(codes, requires_grad=False)
    layer.steps = nn.Parameter(steps, requires_grad=False)


def quantise_all(model: PreTrainedModel) -> None:
    """Turn all linear layers of a model but the output head into `Int8Layer`s, one by one.

    Raises `InputError` as `quantise` does.
    """
    for name, layer in model.named_modules():
        if is_quantisable(model, layer):
            quantise(name, layer, layer.weight)


def is_quantised(model: nn.Module) -> bool:
    """Return whether the model has layers with int8 weights."""
    return any(isinstance(layer, Int8Layer) for layer in model.modules())


def check_full_precision(model: nn.Module, task: str) -> None:
    """Raise `InputError` if the model has int8 weights; `task` cannot be done with them."""
    if is_quantised(model):
        raise InputError(
            f"{task} needs the weights in full precision, but those of this model are int8; load "
            "it with model.quantisation=none."
        )
