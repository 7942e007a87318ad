"""A weighted sum of adapters, ΔW = Σ w ΔWᵢ, as one adapter: every A and B stacked.

This is exact, as PEFT's `add_weighted_adapter` with `combination_type="cat"`. The rank of the sum
is the sum of the ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from loraqa.errors import InputError
from loraqa.lora.activated import ActivatedLinear
from loraqa.lora.adapter import plain_b
from loraqa.lora.dora import DoraLinear
from loraqa.lora.layer import LoraLinear

AdapterLayers = Mapping[str, LoraLinear]
"""The layers of an adapter by their names."""


def weighted_sum(
    weights: Mapping[str, float], adapters: Mapping[str, AdapterLayers]
) -> dict[str, LoraLinear]:
    """Return the layers of the sum over the bases of the adapters' layers.

    Args:
        weights: the weight of each adapter by its name.
        adapters: the layers of these adapters, and perhaps of others, over one base.

    Raises:
        InputError: as for `check_summable`.
    """
    check_summable({name: adapters[name] for name in weights})
    names = dict.fromkeys(name for adapter in weights for name in adapters[adapter])
    return {
        name: _stacked(
            [
                (weight, adapters[adapter][name])
                for adapter, weight in weights.items()
                if name in adapters[adapter]
            ]
        )
        for name in names
    }


def check_summable(adapters: Mapping[str, AdapterLayers]) -> None:
    """Raise `InputError` if an adapter is DoRA, or not all act on the same tokens."""
    kinds = {adapter: next(iter(layers.values())) for adapter, layers in adapters.items()}
    for adapter, layer in kinds.items():
        if isinstance(layer, DoraLinear):
            raise InputError(
                f"{adapter} was trained with DoRA, whose update is no product of two matrices that "
                "could be added to others; use it alone."
            )
    (first, one), *others = kinds.items()
    for other, layer in others:
        if layer.invocation != one.invocation:
            raise InputError(
                f"{first} and {other} act on different tokens (lora.activated), so they cannot be "
                "added; use each alone."
            )


@torch.no_grad()
def _stacked(terms: Sequence[tuple[float, LoraLinear]]) -> LoraLinear:
    """Return one layer for the weighted sum of layers over the same base."""
    a = torch.cat([layer.lora_A for _, layer in terms])
    b = torch.cat([plain_b(layer) * (weight * layer.scaling) for weight, layer in terms], dim=1)
    _, first = terms[0]
    kind: Callable[..., LoraLinear] = LoraLinear
    if first.invocation:
        kind = partial(ActivatedLinear, invocation=first.invocation)
    # The factor α/r is 1, because B holds weights and factors.
    total = kind(first.base, rank=len(a), alpha=len(a))
    total.lora_A.copy_(a)
    total.lora_B.copy_(b)
    return total
