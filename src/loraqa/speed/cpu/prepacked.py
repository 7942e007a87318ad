"""Linear layers for answering on a CPU, with weights in the layout that oneDNN multiplies.

Otherwise a product of few rows, as in decoding, spends much of its time on bringing the weight into
that layout: half of it with GPT-2's output head and 128 rows in fp32, more with fewer rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from loraqa.lora.activated import ActivatedLinear, acting_mask
from loraqa.lora.dora import DoraLinear, rescaled
from loraqa.lora.int8 import is_quantised
from loraqa.lora.layer import LoraLinear, add_update, as_matrix, features
from loraqa.lora.switch import SwitchedLinear
from loraqa.model.choose import TOLERANCE, small_trees
from loraqa.model.load import choose_dtype
from loraqa.model.runner import Runner, Use
from loraqa.speed.trial import DoesNotApplyError, check_module

_CPU = torch.device("cpu")


def applies(runner: Runner, uses: frozenset[Use]) -> bool:
    """Return whether the runner only answers, on a CPU, with weights that are not int8."""
    only_answers = runner.model.device == _CPU and "training" not in uses
    return only_answers and not is_quantised(runner.model)


@torch.no_grad()
def wrap(runner: Runner) -> Runner:
    """Replace the linear layers; the model can be neither trained nor saved afterwards.

    In fp32 the adapter is folded into the weights. In bf16 rounding could lose it, and an activated
    LoRA does not act on all tokens, so these stay beside them. So do several adapters, which share
    the weights.

    Layers are replaced one after another, each after a comparison with the old layer. So only
    weights that the model also uses elsewhere (such as GPT-2's embeddings) lie in memory twice. If
    one layer cannot be replaced, the layers before it stay replaced.
    """
    names = _layers(runner.model)
    _check_only_called(runner, names)
    for name in names:
        runner.model.set_submodule(name, _checked(runner.model.get_submodule(name)))
    return runner


class PrepackedLinear(nn.Module):
    """y = W x + b without gradients: x (..., in), W (out, in), b (out,), y (..., out).

    W is an opaque tensor in oneDNN's own layout.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self.register_buffer("weight", packed)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return y in the dtype of x, which is the dtype of W."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class _Adapted(nn.Module):
    """A `LoraLinear` in eval mode beside a base that others use, with A and B in the dtype of W."""

    a: Tensor
    b: Tensor

    def __init__(self, layer: LoraLinear, base: PrepackedLinear) -> None:
        super().__init__()
        dtype = base.weight.dtype
        self.base = base
        self.parts, self.activated = layer.parts, isinstance(layer, ActivatedLinear)
        self.register_buffer("a", layer.lora_A.to(dtype))
        self.register_buffer("b", (layer.lora_B * layer.scaling).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        y: Tensor = self.base(x)
        flat = x.reshape(-1, x.shape[-1])
        hidden = flat @ self.a.t()
        if self.activated and (acts := acting_mask(flat)) is not None:
            hidden *= acts
        add_update(y.view(-1, y.shape[-1]), hidden, self.b, self.parts)
        return y


class _Stacked(nn.Module):
    """A `LoraLinear` in eval mode, over a base of its own: A lies below W, so one product has both.

    In decoding, where rows are few, starting a product takes longer than computing that of A.
    """

    b: Tensor

    def __init__(self, layer: LoraLinear) -> None:
        super().__init__()
        weight = as_matrix(layer.base, layer.base.weight).t()
        a, bias = layer.lora_A.to(weight.dtype), layer.base.bias
        self.width, self.activated = len(weight), isinstance(layer, ActivatedLinear)
        self.both = PrepackedLinear(
            torch.cat([weight, a]), None if bias is None else pad(bias, (0, len(a)))
        )
        # (k·rank, out), with zeros where a part of A does not act.
        b = a.new_zeros(len(a), self.width)
        scaled_b = (layer.lora_B * layer.scaling).to(b.dtype)
        add_update(b, torch.eye(len(a), dtype=b.dtype), scaled_b, layer.parts)
        self.register_buffer("b", b)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        y, hidden = (
            self.both(x).view(-1, self.both.out_features).split([self.width, len(self.b)], dim=1)
        )
        if self.activated and (acts := acting_mask(x.reshape(len(y), -1))) is not None:
            hidden = hidden * acts
        return torch.addmm(y, hidden, self.b).view(*x.shape[:-1], self.width)


class _Rescaled(nn.Module):
    """A `DoraLinear` in eval mode, given without its factors."""

    changes: Tensor

    def __init__(self, layer: DoraLinear, adapted: nn.Module) -> None:
        super().__init__()
        self.adapted, self.bias = adapted, layer.base.bias
        dtype = layer.base.weight.dtype
        self.register_buffer("changes", (layer.row_factors() - 1).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return rescaled(self.adapted(x), self.changes, self.bias)


class _PackedSwitch(SwitchedLinear):
    """A `SwitchedLinear` whose base is packed, with the updates of all adapters beside it."""

    base: PrepackedLinear

    def __init__(self, switched: SwitchedLinear) -> None:
        base: Any = switched.base
        super().__init__(switched.name, _laid_out(base, base.weight), switched.layers)
        self._fitted = {layer: _beside(layer, self.base) for layer in self.layers}

    def fitted(self, layer: LoraLinear) -> nn.Module:
        """Return the layer in eval mode; one that was made later is over `base` already."""
        return self._fitted[layer] if layer in self._fitted else _beside(layer, self.base)

    def check(self, rows: Tensor, tolerance: float) -> None:
        """Compare each adapter's layer for inputs (n, in), then let it go of W in its own layout.

        Raises:
            WrongResultError: they differ.
        """
        for layer, fitted in self._fitted.items():
            check_module(fitted, layer, rows, tolerance)
        for layer in self._fitted:
            layer.base = self.base


class _OnlyCalled(nn.Module):
    """A layer that can be called, but whose weights cannot be read."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def _layers(model: nn.Module) -> list[str]:
    """Return the names of the layers to replace; the layers themselves would stay in memory.

    Classes derived from a linear layer are left alone, since they may compute something else.
    """
    names, adapted = [], set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | SwitchedLinear):
            names.append(name)
            adapted.add(f"{name}.base")
        elif type(module) in (nn.Linear, Conv1D) and name not in adapted:
            names.append(name)
    return names


def _check_only_called(runner: Runner, names: list[str]) -> None:
    """Raise `DoesNotApplyError` where the model does more with these layers than call them."""
    model = runner.model
    layers = {name: model.get_submodule(name) for name in names}
    try:
        for name, layer in layers.items():
            model.set_submodule(name, _OnlyCalled(layer))
        runner.answer_logits(small_trees(model))
    except (AttributeError, TypeError):
        raise DoesNotApplyError("the model reads the weights of its linear layers itself") from None
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def _checked(layer: nn.Module) -> nn.Module:
    """Make the layer's replacement and compare it with the layer.

    Raises:
        DoesNotApplyError: oneDNN has no such products on this processor.
        WrongResultError: they are wrong.
    """
    base: Any = layer.base if isinstance(layer, LoraLinear | SwitchedLinear) else layer
    width, _ = features(base)
    dtype = base.weight.dtype
    if dtype not in (torch.float32, choose_dtype("auto", _CPU)):
        raise DoesNotApplyError(f"oneDNN cannot multiply packed {dtype} weights on this processor")
    packed = _packed(layer)
    x = torch.linspace(-1, 1, 2 * width).view(2, width).to(dtype)
    for rows in (x, x[:1]):
        check_module(packed, layer, rows, TOLERANCE[dtype])
    if isinstance(packed, _PackedSwitch):
        packed.check(x, TOLERANCE[dtype])
    return packed


def _packed(layer: Any) -> nn.Module:
    if isinstance(layer, SwitchedLinear):
        return _PackedSwitch(layer)
    if not isinstance(layer, LoraLinear):
        return _laid_out(layer, layer.weight)
    if layer.base.weight.dtype == torch.float32 and not isinstance(layer, ActivatedLinear):
        return _laid_out(layer.base, layer.summed_weight())
    return _with_factors(layer, _Stacked(layer))


def _beside(layer: LoraLinear, base: PrepackedLinear) -> nn.Module:
    """Return the layer with its update beside a packed base, which several adapters share."""
    return _with_factors(layer, _Adapted(layer, base))


def _with_factors(layer: LoraLinear, adapted: nn.Module) -> nn.Module:
    return _Rescaled(layer, adapted) if isinstance(layer, DoraLinear) else adapted


def _laid_out(layer: nn.Linear | Conv1D, weight: Tensor) -> PrepackedLinear:
    return PrepackedLinear(as_matrix(layer, weight).t(), layer.bias)
