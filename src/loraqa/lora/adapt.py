"""Put low-rank updates into a model, and count what is trained."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from loraqa.lora.layer import LoraLinear
from loraqa.lora.settings import LoraSettings
from loraqa.lora.targets import select


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters are trained, of how many in all (a tied weight counts once)."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({share:.2%})"


def adapt(model: PreTrainedModel, settings: LoraSettings, seed: int = 0) -> None:
    """Freeze the model and put a `LoraLinear` around each layer that the settings name.

    The model answers as before, to the bit, as every B is 0; the same seed draws the same A.
    Raises `InputError` as `targets.select` does, and then changes nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, rows in select(model, settings.target_modules).items():
        layers[name] = LoraLinear(
            model.get_submodule(name),
            settings.rank,
            settings.alpha,
            dropout=settings.dropout,
            rank_stabilised=settings.rank_stabilised,
            rows=rows,
        )
        layers[name].reset(generator)
    install(model, layers)


def install(model: nn.Module, layers: dict[str, LoraLinear]) -> None:
    """Freeze the model and put `layers` in the places of the layers that they wrap.

    They take over the model's mode (train or eval), which decides whether they drop out.
    """
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer.train(model.training))


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count the model's parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCounts(
        trainable=sum(size for size, trained in sizes if trained),
        total=sum(size for size, _ in sizes),
    )
