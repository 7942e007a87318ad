"""Several adapters over one frozen base: each computation uses the layers of one.

The layers in use are a matter of the context (`contextvars`), like the tokens that an activated
LoRA acts on. So nothing is installed or copied to change the adapter, and threads that use
different adapters do not disturb each other.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import cast

from torch import Tensor, nn

from loraqa.lora.layer import LoraLinear, lora_layers
from loraqa.lora.merge import unload

Layers = Mapping[str, nn.Module]
"""The layers of an adapter by the names of those of the base that they stand for."""

_in_use: ContextVar[Layers] = ContextVar("in_use", default=MappingProxyType({}))


class SwitchedLinear(nn.Module):
    """Computes with the layer of the adapter in use, or with `base` if it has none here.

    Args:
        name: the name of the base's layer in the model.
        base: the base's layer.
        layers: the adapters' layers over it, which are no submodules.
    """

    def __init__(self, name: str, base: nn.Module, layers: Iterable[LoraLinear]) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.layers = tuple(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        y: Tensor = _in_use.get().get(self.name, self.base)(x)
        return y

    def fitted(self, layer: LoraLinear) -> nn.Module:
        """Return what computes as a layer over `base` does; here, the layer itself."""
        return layer


@contextmanager
def using(layers: Layers) -> Iterator[None]:
    """Compute with an adapter's layers, which `fit` returned, in this context."""
    before = _in_use.set(layers)
    try:
        yield
    finally:
        _in_use.reset(before)


def take_out(model: nn.Module) -> dict[str, LoraLinear]:
    """Remove the adapter of a model, as `unload` does, and return its layers."""
    layers = lora_layers(model)
    unload(model)
    return layers


def make_switched(model: nn.Module, adapters: Collection[Mapping[str, LoraLinear]]) -> None:
    """Let all layers of the model that the adapters change compute with the adapter in use."""
    for name in dict.fromkeys(name for layers in adapters for name in layers):
        over = [layers[name] for layers in adapters if name in layers]
        model.set_submodule(name, SwitchedLinear(name, model.get_submodule(name), over))


def fit(model: nn.Module, layers: Mapping[str, LoraLinear]) -> Layers:
    """Return the layers of an adapter of the model for `using`; all their names are switched."""
    switched = {name: cast(SwitchedLinear, model.get_submodule(name)) for name in layers}
    return {name: switched[name].fitted(layer) for name, layer in layers.items()}
