"""DoRA (Liu et al., 2024, arXiv:2402.09353): LoRA turns the rows of W, and m sets their lengths.

Each row of W is split into its length and its direction. LoRA's update changes the direction, and
the length is trained apart, as one number for each output.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from loraqa.errors import InputError
from loraqa.lora.layer import LoraLinear, Part, as_matrix, lora_layers


class DoraLinear(LoraLinear):
    """y = m/n ∘ (W + s B A) x + b, where n holds the lengths of the rows of W + s B A.

    `lora_magnitude` is m (out,), which starts as the lengths of the rows of W. As in the paper's
    section 4.3, n gets no gradient. The layer cannot be adapted in parts.
    """

    row_squares: Tensor

    def __init__(self, base: nn.Module, rank: int, alpha: float, **settings: object) -> None:
        super().__init__(base, rank, alpha, **settings)  # type: ignore[arg-type]
        squares = torch.linalg.vector_norm(self.frozen_weight, dim=1, dtype=self.lora_A.dtype) ** 2
        self.register_buffer("row_squares", squares, persistent=False)
        self.lora_magnitude = nn.Parameter(squares.sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out), both in the base's dtype."""
        if self.merged_weight is not None:
            return super().forward(x)
        changes = (self.row_factors() - 1).to(x.dtype)
        return rescaled(super().forward(x), changes, self.base.bias)

    def row_factors(self) -> Tensor:
        """Return m/n (out,)."""
        return self.lora_magnitude / self.row_lengths()

    @torch.no_grad()
    def row_lengths(self) -> Tensor:
        """Return n (out,), without forming B A: |w + s Aᵀb|² = |w|² + 2s w·Aᵀb + s² bᵀ(A Aᵀ)b."""
        a, b, s = self.lora_A, self.lora_B, self.scaling
        crossed = ((self.frozen_weight.to(a.dtype) @ a.t()) * b).sum(dim=1)
        updates = ((b @ (a @ a.t())) * b).sum(dim=1)
        squares = self.row_squares + 2 * s * crossed + s**2 * updates
        # A row of zeros has no direction; it stays 0.
        return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()

    @torch.no_grad()
    def summed_weight(self) -> Tensor:
        """Return m/n ∘ (W + s B A) in W's layout, computed in fp32 and rounded once."""
        total = self.base.weight.to(self.lora_A.dtype, copy=True)
        weight = as_matrix(self.base, total).t()
        weight.addmm_(self.lora_B, self.lora_A, alpha=self.scaling)
        weight.mul_(self.row_factors()[:, None])
        return total.to(self.base.weight.dtype)


def rescaled(y: Tensor, changes: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply the outputs y (..., out) by 1 + `changes` (out,), but not the bias that they hold.

    Changes keep their digits in bfloat16, where factors near 1 would be rounded to 0.4 or 0.8%.
    """
    return torch.addcmul(y, y if bias is None else y - bias, changes)


def check_whole_layers(names: Mapping[str, Sequence[Part]]) -> None:
    """Raise `InputError` if a layer is to be adapted in parts, which DoRA does not know."""
    if in_parts := [name for name, parts in names.items() if any(part.name for part in parts)]:
        raise InputError(
            f"lora.dora adapts only whole layers, but lora.target_modules names parts of "
            f"{in_parts[0]}; name the layer without brackets."
        )


def check_plain_updates(model: nn.Module) -> None:
    """Raise `InputError` if the update of a layer is more than s B A."""
    for name, layer in lora_layers(model).items():
        if isinstance(layer, DoraLinear):
            raise InputError(
                f"{name} was trained with DoRA, whose update is not of low rank; this analysis "
                "needs an adapter of plain LoRA."
            )
