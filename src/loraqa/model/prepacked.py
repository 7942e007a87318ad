"""Linear layers for answering on a CPU, with weights as oneDNN multiplies them.

A product of few rows, as in decoding, otherwise spends much of its time on bringing the matrix into
that layout: with GPT-2's output head and 128 rows in fp32 half of it, with few rows more.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.errors import in_a_line
from loraqa.lora.layer import LoraLinear, add_update, as_matrix, features
from loraqa.model.load import choose_dtype

logger = logging.getLogger("loraqa")

_CPU = torch.device("cpu")
# How far rounding may drive two ways to compute the same product apart, relative.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03}


@torch.no_grad()
def prepack(model: PreTrainedModel) -> None:
    """Let a model on a CPU answer with prepacked weights; it can be neither trained nor saved then.

    In fp32 an adapter is folded into the weights on the way; in bf16 rounding their sum could lose
    it, so it stays beside them. One layer after another is replaced and compared with what it was,
    so only weights that the model also uses elsewhere, as GPT-2 its embeddings, lie in memory
    twice (beside pages of the model's file, which the system may take back).

    Where something stands against it (such as a PyTorch or a processor without such products, a
    model that looks at its layers' weights itself, or a lack of memory) the rest stays as it is,
    and a line says so.
    """
    if model.device != _CPU:
        return
    layers = _layers(model)
    try:
        _check_called_only(model, layers)
        for name in layers:
            model.set_submodule(name, _prepacked(model.get_submodule(name)))
    # Whatever a model does beside calling its layers; operators that are meant for PyTorch's own
    # compiler, which a version or a processor may lack.
    except Exception as problem:
        logger.info("Weights are not laid out for answering: %s.", in_a_line(problem))


class PrepackedLinear(nn.Module):
    """y = W x + b without gradients: x (..., in), W (out, in), b (out,), y (..., out).

    W is kept as an opaque tensor of oneDNN's.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self.register_buffer("weight", packed)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """In the dtype of W, which is that of x."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class _Adapted(nn.Module):
    """What a `LoraLinear` computes in eval mode, with A and B rounded once."""

    a: Tensor
    b: Tensor

    def __init__(self, layer: LoraLinear) -> None:
        super().__init__()
        dtype = layer.base.weight.dtype
        self.base = _laid_out(layer.base, layer.base.weight)
        self.parts = layer.parts
        self.register_buffer("a", layer.lora_A.to(dtype))
        self.register_buffer("b", (layer.lora_B * layer.scaling).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        y: Tensor = self.base(x)
        hidden = x.reshape(-1, x.shape[-1]) @ self.a.t()
        add_update(y.view(-1, y.shape[-1]), hidden, self.b, self.parts)
        return y


class _OnlyCalled(nn.Module):
    """A layer that shows nothing of itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def _layers(model: nn.Module) -> list[str]:
    """Names of the layers to replace, without references to them.

    Of linear layers those that compute nothing else, as a class derived from them may.
    """
    names, adapted = [], set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            names.append(name)
            adapted.add(f"{name}.base")
        elif type(module) in (nn.Linear, Conv1D) and name not in adapted:
            names.append(name)
    return names


def _check_called_only(model: PreTrainedModel, names: list[str]) -> None:
    """Raise whatever the model raises where it does more with these layers than call them."""
    layers = {name: model.get_submodule(name) for name in names}
    try:
        for name, layer in layers.items():
            model.set_submodule(name, _OnlyCalled(layer))
        model(input_ids=torch.arange(4)[None], use_cache=False)
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def _prepacked(layer: nn.Module) -> nn.Module:
    """What to put into the place of a layer.

    Raises:
        ValueError: there are no products of its weights, or they are wrong.
    """
    base: Any = layer.base if isinstance(layer, LoraLinear) else layer
    width, _ = features(base)
    dtype = base.weight.dtype
    if dtype not in _dtypes():
        raise ValueError(f"this processor has no such products of {dtype}")
    packed = _packed(layer)
    x = torch.linspace(-1, 1, 2 * width).view(2, width).to(dtype)
    for rows in (x, x[:1]):
        expected = layer(rows).float()
        error = (packed(rows).float() - expected).norm()
        # What is not a number is wrong too.
        if not error <= _TOLERANCE[dtype] * expected.norm():
            raise ValueError("such products are wrong here")
    return packed


def _packed(layer: Any) -> nn.Module:
    if not isinstance(layer, LoraLinear):
        return _laid_out(layer, layer.weight)
    if layer.base.weight.dtype == torch.float32:
        return _laid_out(layer.base, layer.summed_weight())
    return _Adapted(layer)


def _laid_out(layer: nn.Linear | Conv1D, weight: Tensor) -> PrepackedLinear:
    return PrepackedLinear(as_matrix(layer, weight).t(), layer.bias)


def _dtypes() -> tuple[torch.dtype, ...]:
    return (torch.float32, choose_dtype("auto", _CPU))
