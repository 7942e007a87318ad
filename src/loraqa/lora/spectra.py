"""The singular values of each update ΔW = s BA of an adapter."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraqa.lora.dora import check_plain_updates
from loraqa.lora.layer import LoraLinear, Part, lora_layers
from loraqa.lora.pissa import check_whole_weights


@dataclass(frozen=True)
class Spectrum:
    """The spectrum σ₁ ≥ σ₂ ≥ … of one update and its summary. Ranks and shares of ΔW = 0 are 0.

    Attributes:
        name: the layer's name, with the part if the layer is adapted in parts ("…c_attn[q]").
        rank: r.
        singular_values: σ₁, σ₂, …, at most r of them.
        norm: Frobenius norm ‖ΔW‖.
        base_norm: Frobenius norm ‖W‖ of the same part of the frozen weight.
        stable_rank: ‖ΔW‖² / σ₁² (Rudelson & Vershynin, 2007).
        effective_rank: exp of the entropy of σᵢ / Σσ (Roy & Vetterli, 2007).
    """

    name: str
    rank: int
    singular_values: tuple[float, ...]
    norm: float
    base_norm: float
    stable_rank: float
    effective_rank: float

    @property
    def relative_norm(self) -> float:
        """‖ΔW‖ / ‖W‖."""
        return self.norm / self.base_norm

    @property
    def top_share(self) -> float:
        """The share of ‖ΔW‖² in the first direction, σ₁² / Σσ²."""
        return 1 / self.stable_rank if self.stable_rank else 0.0


@torch.no_grad()
def spectra(model: nn.Module) -> list[Spectrum]:
    """Return the spectrum of every update in the model, in the model's order, computed in fp64.

    Raises `InputError` if PiSSA has split weights of the model, or if it was trained with DoRA.
    """
    check_whole_weights(model)
    check_plain_updates(model)
    return [
        _spectrum(name, part, layer.scaling * low_rank_singular_values(b, a), layer)
        for name, layer in lora_layers(model).items()
        for part, a, b in layer.blocks()
    ]


def low_rank_singular_values(b: Tensor, a: Tensor) -> Tensor:
    """Return the singular values of B (m, r) A (r, n) in fp64 without forming BA (m, n).

    With B = Q R and Aᵀ = P S they equal those of R Sᵀ, as Q and P have orthonormal columns.
    """
    _, left = torch.linalg.qr(b.cpu().double(), mode="r")
    _, right = torch.linalg.qr(a.t().cpu().double(), mode="r")
    values: Tensor = torch.linalg.svdvals(left @ right.t())
    return values


def _spectrum(name: str, part: Part, values: Tensor, layer: LoraLinear) -> Spectrum:
    largest, total = values[0], values.sum()
    energy = values.square().sum()
    zero = not largest > 0
    return Spectrum(
        name=f"{name}[{part.name}]" if part.name else name,
        rank=layer.rank,
        singular_values=tuple(values.tolist()),
        norm=energy.sqrt().item(),
        base_norm=torch.linalg.vector_norm(layer.frozen_weight[part.slice].double()).item(),
        stable_rank=0.0 if zero else (energy / largest.square()).item(),
        effective_rank=0.0 if zero else torch.special.entr(values / total).sum().exp().item(),
    )
