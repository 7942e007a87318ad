"""PiSSA (Meng et al., 2024, arXiv:2404.02948): A and B start as the main directions of W.

LoRA's update starts as 0. PiSSA splits W into s B₀ A₀, its r largest singular directions, which are
trained, and the rest, which is frozen. So the outputs start as the base's, too. What was learned is
plain LoRA of rank 2r on W: s (B A - B₀ A₀). This is how it is saved.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from loraqa.errors import InputError
from loraqa.lora.int8 import check_full_precision
from loraqa.lora.layer import LoraLinear, as_matrix, lora_layers


class PissaLinear(LoraLinear):
    """y = (W - s B₀ A₀) x + b + s B A x, for training.

    `reset` or `take_up` replaces the weight of `base`, W, by W - s B₀ A₀, and keeps A₀ and B₀ in
    `initial_a` and `initial_b`, which have the shapes of `lora_A` and `lora_B`.
    """

    initial_a: Tensor
    initial_b: Tensor

    @torch.no_grad()
    def reset(self, _: torch.Generator) -> None:
        """Start A as √(Σ/s) Vᵀ and B as U √(Σ/s), for the r largest directions of W ≈ U Σ Vᵀ.

        Nothing is drawn. Where W has fewer than r directions, the rest of A and B is 0.
        """
        for part, a, b in self.blocks():
            u, values, vt = torch.linalg.svd(self.frozen_weight[part.slice], full_matrices=False)
            root = (values[: self.rank] / self.scaling).sqrt()
            a[: len(root)] = root[:, None] * vt[: self.rank]
            b[:, : len(root)] = u[:, : self.rank] * root
        self._take_out()

    @torch.no_grad()
    def take_up(self, saved: LoraLinear) -> None:
        """Become the layer whose `plain` form was saved, to the bit."""
        a_blocks = saved.lora_A.split(self.rank)
        b, negative_b = saved.lora_B.split(self.rank, dim=1)
        self.lora_A.copy_(torch.cat(a_blocks[1::2]))
        self.lora_B.copy_(-negative_b)
        self._take_out()
        self.lora_A.copy_(torch.cat(a_blocks[::2]))
        self.lora_B.copy_(b)

    @torch.no_grad()
    def plain(self) -> LoraLinear:
        """Return the LoRA of rank 2r on W that equals this layer: s (B A - B₀ A₀)."""
        plain = LoraLinear(
            self.base,
            2 * self.rank,
            self.alpha * (math.sqrt(2) if self.rank_stabilised else 2),
            dropout=self.dropout,
            rank_stabilised=self.rank_stabilised,
            parts=self.parts,
        )
        a_blocks = zip(self.lora_A.split(self.rank), self.initial_a.split(self.rank), strict=True)
        plain.lora_A.copy_(torch.cat([a for pair in a_blocks for a in pair]))
        plain.lora_B.copy_(torch.cat([self.lora_B, -self.initial_b], dim=1))
        return plain

    def _take_out(self) -> None:
        """Make the present A and B the initial ones, and take s B A out of the base's weight.

        The weight is replaced, not changed, because another model may share it.
        """
        for name, matrix in (("initial_a", self.lora_A), ("initial_b", self.lora_B)):
            self.register_buffer(name, matrix.detach().clone(), persistent=False)
        rest = self.base.weight.detach().clone()
        weight = as_matrix(self.base, rest).t()
        for part, a, b in self.blocks():
            weight[part.slice].addmm_(b, a, alpha=-self.scaling)
        self.base.weight = nn.Parameter(rest, requires_grad=False)


def plain_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Return the adapted layers by name, those of PiSSA in their plain form."""
    return {
        name: layer.plain() if isinstance(layer, PissaLinear) else layer
        for name, layer in lora_layers(model).items()
    }


def check_splittable(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `InputError` if the weight of one of the layers `names` cannot be split."""
    check_full_precision(model, "lora.initialisation=pissa")
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        if weight.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"lora.initialisation=pissa would round what it leaves of {name} to "
                f"{weight.dtype}; set model.dtype=float32."
            )
        if not weight.isfinite().all():
            raise InputError(
                f"The weight of {name} holds a NaN or an infinity, so lora.initialisation=pissa "
                "cannot split it; use another base model."
            )


def check_whole_weights(model: nn.Module) -> None:
    """Raise `InputError` if PiSSA has split weights of the model."""
    if any(isinstance(layer, PissaLinear) for layer in lora_layers(model).values()):
        raise InputError(
            "The weights of this model lack what PiSSA took out of them; save the adapter, and "
            "load it into the base model."
        )
