"""A frozen linear layer with a trainable low-rank update beside it."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from loraqa.lora.settings import scaling


@dataclass(frozen=True)
class Part:
    """Output rows `start` to `stop` of a fused projection, such as GPT-2's `c_attn`.

    `name` is the model's word for the part ("q"); it is empty for a whole layer.
    """

    start: int
    stop: int
    name: str = ""

    @property
    def height(self) -> int:
        """The number of rows."""
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """The rows as a slice."""
        return slice(self.start, self.stop)


class LoraLinear(nn.Module):
    """y = W x + b + s B A x, with W and b frozen and s = α/r or α/√r.

    `base` is an `nn.Linear` or a `Conv1D` (GPT-2's, whose weight is (in, out)); it is kept, not
    copied. Each of the k `parts` (default: one part, the whole layer) has its own A (rank, in) and
    B (height, rank), stacked in `lora_A` (k·rank, in) and `lora_B` (sum of heights, rank). Both are
    zero until `reset` draws A. A and B are fp32 (fp64 over an fp64 base) whatever the base's dtype;
    products and output have the base's dtype.
    """

    merged_weight: Tensor | None
    invocation: tuple[int, ...] = ()
    """The token ids from which an activated LoRA acts; nothing if the update acts on all tokens."""

    def __init__(
        self,
        base: nn.Linear | Conv1D,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        rank_stabilised: bool = False,
        parts: tuple[Part, ...] = (),
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = features(base)
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.rank_stabilised = rank_stabilised
        self.parts = parts or (Part(0, self.out_features),)
        self.base = base
        height, weight = sum(part.height for part in self.parts), base.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        zeros = partial(torch.zeros, device=weight.device, dtype=dtype)
        self.lora_A = nn.Parameter(zeros(len(self.parts) * rank, self.in_features))
        self.lora_B = nn.Parameter(zeros(height, rank))
        self.register_buffer("merged_weight", None, persistent=False)

    @property
    def scaling(self) -> float:
        """s, the factor before BA."""
        return scaling(self.rank, self.alpha, self.rank_stabilised)

    @property
    def acts_everywhere(self) -> bool:
        """Whether the update acts on all tokens."""
        return True

    @property
    def frozen_weight(self) -> Tensor:
        """W as a view (out, in)."""
        return as_matrix(self.base, self.base.weight).t()

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw A uniform in ±1/√in, as Microsoft's LoRA and PEFT do; set B to 0.

        A is drawn on the CPU in fp32, so that a seed gives the same adapter on every device.
        """
        drawn = torch.empty(self.lora_A.shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.lora_A.copy_(drawn)
        self.lora_B.zero_()

    def blocks(self) -> list[tuple[Part, Tensor, Tensor]]:
        """Return each part with its A (rank, in) and B (height, rank)."""
        heights = [part.height for part in self.parts]
        a_blocks, b_blocks = torch.split(self.lora_A, self.rank), torch.split(self.lora_B, heights)
        return list(zip(self.parts, a_blocks, b_blocks, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out), both in the base's dtype."""
        flat = x.reshape(-1, self.in_features)
        if self.merged_weight is None:
            y = self._adapted(flat)
        else:
            y = affine(flat, as_matrix(self.base, self.merged_weight), self.base.bias)
        return y.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def summed_weight(self) -> Tensor:
        """Return W + s BA in W's layout, summed in fp32 and rounded once to W's dtype."""
        total = self.base.weight.to(self.lora_A.dtype, copy=True)
        weight = as_matrix(self.base, total).t()
        for part, a, b in self.blocks():
            weight[part.slice].addmm_(b, a, alpha=self.scaling)
        return total.to(self.base.weight.dtype)

    def merge(self) -> None:
        """Compute with W + s BA from now on; it is stored beside W, which does not change."""
        self.merged_weight = self.summed_weight()

    def unmerge(self) -> None:
        """Compute with W and the update apart again, to the bit, because W never changed."""
        self.merged_weight = None

    def _adapted(self, x: Tensor) -> Tensor:
        result: Tensor = _LowRankLinear.apply(  # type: ignore[no-untyped-call]
            x,
            self.base,
            self.lora_A.to(x.dtype),
            self.lora_B.to(x.dtype),
            self._mask(x),
            self.parts,
            self.scaling,
        )
        return result

    def _mask(self, x: Tensor) -> Tensor | None:
        """Return what A's input x (n, in) is multiplied with, (n, in) or (n, 1); None is 1."""
        if self.dropout == 0 or not self.training:
            return None
        return F.dropout(torch.ones_like(x), self.dropout)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Return the adapted layers of the model by name, in the model's order."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)
    }


def features(base: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return the numbers of input and output features."""
    if isinstance(base, Conv1D):
        return base.nx, base.nf
    return base.in_features, base.out_features


class _LowRankLinear(torch.autograd.Function):
    """y = x M + b + s (x ∘ mask) Aᵀ Bᵀ, for M (in, out) and b of the frozen base.

    The update is added to y in place, and its gradient for x to that of the frozen product, so
    nothing of the size of x or y is allocated twice. x's gradient is computed only if x needs one.
    It reads M from the base again, because the M of an `Int8Layer` is computed when it is read.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: nn.Linear | Conv1D,
        a: Tensor,
        b: Tensor,
        mask: Tensor | None,
        parts: tuple[Part, ...],
        scale: float,
    ) -> Tensor:
        matrix, bias = as_matrix(base, base.weight), base.bias
        dropped = x if mask is None else x * mask
        hidden = scaled_product(scale, dropped, a.t())
        # On other devices the large product adds the bias at no cost.
        if x.is_cpu and bias is not None and len(b) == len(bias):
            y = x @ matrix
            _add_update_and_bias(y, hidden, b, parts, bias)
        else:
            y = affine(x, matrix, bias)
            add_update(y, hidden, b, parts)
        ctx.base, ctx.parts, ctx.scale = base, parts, scale
        ctx.save_for_backward(dropped, a, b, mask, hidden)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        dropped, a, b, mask, hidden = ctx.saved_tensors
        blocks = _blocks(ctx.parts, hidden, b)
        d_hidden = _joined(
            [scaled_product(ctx.scale, dy[:, part.slice], b_block) for part, _, b_block in blocks],
            dim=1,
        )
        d_a = d_hidden.t() @ dropped
        d_b = _joined([thin_product(dy[:, part.slice], h) for part, h, _ in blocks])
        dx = _input_gradient(ctx.base, dy, d_hidden, a, mask) if ctx.needs_input_grad[0] else None
        return dx, None, d_a, d_b, None, None, None


def add_update(y: Tensor, hidden: Tensor, b: Tensor, parts: tuple[Part, ...]) -> None:
    """Add h Bᵀ to y in place, part by part.

    Args:
        y: (n, out).
        hidden: (n, k·rank), h = s x Aᵀ.
        b: (sum of heights, rank), the stacked B of the k parts.
        parts: the parts of y.
    """
    for part, h, b_block in _blocks(parts, hidden, b):
        y[:, part.slice].addmm_(h, b_block.t())


def _add_update_and_bias(
    y: Tensor, hidden: Tensor, b: Tensor, parts: tuple[Part, ...], bias: Tensor
) -> None:
    """Add update and bias to y in one product: the bias is the weight of a constant hidden unit, 1.

    On a CPU `addmm` would write the bias to all of y before the large product and read it again.
    """
    one = hidden.new_ones(len(hidden), 1)
    for part, h, b_block in _blocks(parts, hidden, b):
        with_bias = torch.cat([b_block, bias[part.slice, None]], dim=1)
        y[:, part.slice].addmm_(torch.cat([h, one], dim=1), with_bias.t())


def _input_gradient(
    base: nn.Linear | Conv1D, dy: Tensor, d_hidden: Tensor, a: Tensor, mask: Tensor | None
) -> Tensor:
    dx = dy @ as_matrix(base, base.weight).t()
    if mask is None:
        return dx.addmm_(d_hidden, a)
    return dx.addcmul_(d_hidden @ a, mask)


def _blocks(
    parts: tuple[Part, ...], hidden: Tensor, b: Tensor
) -> list[tuple[Part, Tensor, Tensor]]:
    """Return each part with its columns of `hidden` (n, k·rank) and its rows of the stacked B."""
    heights = [part.height for part in parts]
    h_blocks, b_blocks = torch.split(hidden, b.shape[1], dim=1), torch.split(b, heights)
    return list(zip(parts, h_blocks, b_blocks, strict=True))


def scaled_product(scale: float, left: Tensor, right: Tensor) -> Tensor:
    """Return scale · left right, scaled within the product instead of by another pass."""
    return torch.addmm(left.new_empty(1, 1), left, right, beta=0, alpha=scale)


def thin_product(wide: Tensor, thin: Tensor) -> Tensor:
    """Return wideᵀ thin; on a CPU as (thinᵀ wide)ᵀ, up to five times faster, not contiguous."""
    return (thin.t() @ wide).t() if wide.is_cpu else wide.t() @ thin


def _joined(pieces: list[Tensor], dim: int = 0) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def affine(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return x @ matrix if bias is None else torch.addmm(bias, x, matrix)


def as_matrix(base: nn.Linear | Conv1D, weight: Tensor) -> Tensor:
    """Return a view (in, out) of `weight`, which has the layout of `base.weight`."""
    return weight if isinstance(base, Conv1D) else weight.t()
