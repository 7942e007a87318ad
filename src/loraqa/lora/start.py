"""Go on from the values of another adapter."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from loraqa.errors import InputError
from loraqa.lora.adapt import described_layers
from loraqa.lora.adapter import load_adapter
from loraqa.lora.dora import DoraLinear
from loraqa.lora.layer import LoraLinear, lora_layers
from loraqa.lora.settings import LoraSettings


def start_from(
    model: PreTrainedModel, folder: Path, settings: LoraSettings, invocation: Sequence[int] = ()
) -> None:
    """Freeze the model and add the adapter in `folder`, with the dropout of `settings`.

    Raises:
        InputError: as for `adapt` and `load_adapter`, or `settings` describe another LoRA.
    """
    asked = _shapes(described_layers(model, settings, invocation))
    load_adapter(model, folder)
    layers = lora_layers(model)
    found = _shapes(layers)
    for name in [*found, *asked]:
        there, here = found.get(name, "not adapted"), asked.get(name, "not adapted")
        if there != here:
            raise InputError(
                f"The adapter in {folder} cannot be the start of another LoRA, but {name} is "
                f"{there} in it and {here} in the settings: leave these settings of lora out."
            )
    for layer in layers.values():
        layer.dropout = settings.dropout


def _shapes(layers: dict[str, LoraLinear]) -> dict[str, str]:
    """Say in words what each layer computes, whatever the values of its matrices."""
    return {name: _shape(layer) for name, layer in layers.items()}


def _shape(layer: LoraLinear) -> str:
    kind = "DoRA" if isinstance(layer, DoraLinear) else "LoRA"
    words = [f"{kind} of rank {layer.rank} and alpha {layer.alpha:g}"]
    if layer.rank_stabilised:
        words.append("(rank-stabilised)")
    if any(part.name for part in layer.parts):
        words.append(f"in the parts {', '.join(part.name for part in layer.parts)}")
    if layer.invocation:
        words.append(f"activated by the tokens {list(layer.invocation)}")
    return " ".join(words)
