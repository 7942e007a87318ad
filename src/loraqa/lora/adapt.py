"""Add low-rank updates to a model, and count its trained parameters."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from loraqa.errors import InputError, counted
from loraqa.lora.activated import ActivatedLinear
from loraqa.lora.dora import DoraLinear, check_whole_layers
from loraqa.lora.layer import LoraLinear, Part, features, lora_layers
from loraqa.lora.merge import unload
from loraqa.lora.pissa import PissaLinear, check_splittable
from loraqa.lora.settings import LoraSettings
from loraqa.lora.targets import by_pattern, check_no_head, select

logger = logging.getLogger("loraqa")

_Layer = TypeVar("_Layer", bound=LoraLinear)


@dataclass(frozen=True)
class ParameterCounts:
    """The numbers of trained and of all parameters; a tied weight counts once."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({share:.2%})"


def adapt(
    model: PreTrainedModel, settings: LoraSettings, seed: int = 0, invocation: Sequence[int] = ()
) -> None:
    """Freeze the model and wrap each layer that the settings name in a `LoraLinear`.

    The model's outputs stay the same, except for rounding. The same seed draws the same A. An
    activated LoRA needs the ids of its `invocation` (see `ActivatedLinear`).
    Raises `InputError` as `targets.select` and `targets.by_pattern` do, or if a rank is above that
    of every matrix that gets it, if PiSSA cannot split a weight, or if DoRA is to adapt parts of a
    layer, before anything is changed.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = described_layers(model, settings, invocation)
    for layer in layers.values():
        layer.reset(generator)
    install(model, layers)


def described_layers(
    model: PreTrainedModel, settings: LoraSettings, invocation: Sequence[int] = ()
) -> dict[str, LoraLinear]:
    """Return the layers that `adapt` would put into the model, by their names, with A and B 0.

    Raises `InputError` as `adapt` does.
    """
    layers = _wrap(model, settings, _kind(settings, invocation))
    if settings.activated:
        check_no_head(model, layers)
    return layers


def resume_pissa(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Turn the adapter that was loaded into the PiSSA that `settings` began, to the bit."""
    saved = lora_layers(model)
    unload(model)
    layers = _wrap(model, settings, PissaLinear)
    for name, layer in layers.items():
        layer.take_up(saved[name])
    install(model, layers)


def _kind(settings: LoraSettings, invocation: Sequence[int]) -> Callable[..., LoraLinear]:
    if settings.activated:
        return partial(ActivatedLinear, invocation=invocation)
    if settings.dora:
        return DoraLinear
    return PissaLinear if settings.initialisation == "pissa" else LoraLinear


def _wrap(
    model: PreTrainedModel, settings: LoraSettings, kind: Callable[..., _Layer]
) -> dict[str, _Layer]:
    """Return a new layer for each one that the settings name, with A and B 0."""
    selected = select(model, settings.target_modules)
    ranks = by_pattern("lora.rank_pattern", settings.rank_pattern, settings.rank, selected)
    alphas = by_pattern("lora.alpha_pattern", settings.alpha_pattern, settings.alpha, selected)
    _check_ranks(model, ranks, selected)
    if kind is PissaLinear:
        check_splittable(model, selected)
    if kind is DoraLinear:
        check_whole_layers(selected)
    return {
        name: kind(
            model.get_submodule(name),
            ranks[name],
            alphas[name],
            dropout=settings.dropout,
            rank_stabilised=settings.rank_stabilised,
            parts=parts,
        )
        for name, parts in selected.items()
    }


def _check_ranks(
    model: nn.Module, ranks: Mapping[str, int], selected: Mapping[str, Sequence[Part]]
) -> None:
    """Refuse a rank above that of every matrix that gets it, and warn of others below theirs."""
    most = {
        name: min(features(model.get_submodule(name))[0], part.stop - part.start)
        for name, parts in selected.items()
        for part in parts
    }
    for rank in sorted(set(ranks.values())):
        highest = max(most[name] for name in ranks if ranks[name] == rank)
        if rank > highest:
            raise InputError(
                f"lora.rank or rank_pattern is {rank:,}, but no adapted matrix that gets it has a "
                f"rank above {highest:,}; lower it."
            )
    if low := [name for name in most if ranks[name] > most[name]]:
        logger.warning(
            f"lora.rank or rank_pattern is above the rank of {counted(len(low), 'adapted layer')}, "
            f"such as {low[0]} with {most[low[0]]:,}; more than that adds weights but nothing to "
            "learn."
        )


def install(model: nn.Module, layers: Mapping[str, LoraLinear]) -> None:
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
