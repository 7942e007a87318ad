"""Linear layers for answering on a CPU, with weights as oneDNN multiplies them.

A product of few rows, as in decoding, otherwise spends much of its time on bringing the matrix into
that layout: with GPT-2's output head and 128 rows in fp32 half of it, with few rows more.
"""

import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.errors import in_a_line
from loraqa.lora.layer import LoraLinear, add_update, lora_layers
from loraqa.lora.merge import fold
from loraqa.model.load import choose_dtype
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory

logger = logging.getLogger("loraqa")

# oneDNN has products of these.
_DTYPES = (torch.float32, torch.bfloat16)


@torch.no_grad()
@explaining_lack_of_memory("while weights were laid out", ADVICE_TO_LOADERS)
def prepack(model: PreTrainedModel) -> bool:
    """Let a model answer with prepacked weights, if that works. It cannot be trained after.

    In fp32 its adapter is folded into the weights before; in bf16 rounding the sum could lose it,
    so it stays beside them. Layers are replaced one after another: only weights that the model
    also uses elsewhere, as GPT-2 its embeddings, then lie in memory twice.

    Returns:
        Whether it does.

    Raises:
        LackOfMemoryError: they do not fit.
    """
    if model.device.type != "cpu" or model.dtype not in _DTYPES or not _works(model.dtype):
        return False
    if model.dtype == torch.float32:
        fold(model)
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, _Adapted(layer))
    for name in _linear_layers(model):
        model.set_submodule(name, PrepackedLinear(model.get_submodule(name)))
    return True


class PrepackedLinear(nn.Module):
    """y = W x + b without gradients, for the W and b of an `nn.Linear` or a `Conv1D`.

    W is an opaque tensor of oneDNN's; x and y are (..., in) and (..., out) as ever.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        super().__init__()
        matrix = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix.detach().contiguous(), None)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", layer.bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """As that layer's."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class _Adapted(nn.Module):
    """What a `LoraLinear` computes in eval mode, with A and B rounded once."""

    a: Tensor
    b: Tensor

    def __init__(self, layer: LoraLinear) -> None:
        super().__init__()
        dtype = layer.base.weight.dtype
        self.base: nn.Module = layer.base
        self.rows = layer.rows
        self.register_buffer("a", layer.lora_A.to(dtype), persistent=False)
        self.register_buffer("b", (layer.lora_B * layer.scaling).to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        y: Tensor = self.base(x)
        flat = x.reshape(-1, x.shape[-1])
        add_update(y.view(len(flat), -1), flat @ self.a.t(), self.b, self.rows)
        return y


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of those that compute nothing but W x + b, without references to them."""
    return [name for name, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)]


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this machine and this PyTorch have such products; a line says why not."""
    reason = _why_not(dtype)
    if reason is not None:
        logger.info("Weights are not laid out for answering: %s.", reason)
    return reason is None


@torch.no_grad()
def _why_not(dtype: torch.dtype) -> str | None:
    cpu = torch.device("cpu")
    if dtype == torch.bfloat16 and choose_dtype("auto", cpu) != torch.bfloat16:
        return "this processor has no products of bf16 matrices"
    layer: Any = skip_init(nn.Linear, 48, 80, dtype=dtype)
    x = torch.linspace(-1, 1, 7 * 48).view(1, 7, 48).to(dtype)
    layer.weight.copy_(torch.linspace(-2, 1, 80 * 48).view(80, 48))
    layer.bias.copy_(torch.linspace(1, 3, 80))
    try:
        torch.testing.assert_close(PrepackedLinear(layer)(x), F.linear(x, layer.weight, layer.bias))
    # Operators that PyTorch's own compiler uses: a version or a processor may lack them.
    except Exception as problem:
        return in_a_line(problem)
    return None
