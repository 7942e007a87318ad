"""Add low-rank updates to a model, and count its trained parameters."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from loraqa.lora.layer import LoraLinear
from loraqa.lora.settings import LoraSettings
from loraqa.lora.targets import select


@dataclass(frozen=True)
class ParameterCounts:
    """The numbers of trained and of all parameters; a tied weight counts once."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({share:.2%})"


def adapt(model: PreTrainedModel, settings: LoraSettings, seed: int = 0) -> None:
    """Freeze the model and wrap each layer that the settings name in a `LoraLinear`.

    Every B is 0, so the model's outputs stay the same, except for rounding. The same seed draws the
    same A.
    Raises `InputError` as `targets.select` does, before anything is changed.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, parts in select(model, settings.target_modules).items():
        layers[name] = LoraLinear(
            model.get_submodule(name),
            settings.rank,
            settings.alpha,
            dropout=settings.dropout,
            rank_stabilised=settings.rank_stabilised,
            parts=parts,
        )
        layers[name].reset(generator)
    install(model, layers)


def install(model: nn.Module, layers: dict[str, LoraLinear]) -> None:
    """Freeze the model and replace each named layer by the `LoraLinear` that wraps it.

    The new layers take over the model's mode (train or eval), which switches their dropout.
    """
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer.train(model.training))


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Return the numbers of trained and of all parameters of the model."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCounts(
        trainable=sum(size for size, trained in sizes if trained),
        total=sum(size for size, _ in sizes),
    )
