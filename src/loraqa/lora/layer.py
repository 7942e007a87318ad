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
class Rows:
    """Output rows `start` to `stop` of a projection; `name` is the model's word for them ("q")."""

    start: int
    stop: int
    name: str = ""

    @property
    def height(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """For indexing."""
        return slice(self.start, self.stop)


class LoraLinear(nn.Module):
    """y = W x + b + s B A x, with W and b frozen and s = α/r or α/√r.

    `base` is an `nn.Linear` or a `Conv1D` (GPT-2's, whose weight is (in, out)); it is kept, not
    copied. Each of the k blocks in `rows` (all rows unless given) has its own A (rank, in) and
    B (height, rank); they lie stacked in `lora_A` (k·rank, in) and `lora_B` (heights, rank), zero
    until `reset` draws them. A and B are fp32 (fp64 over an fp64 base) whatever the base's dtype;
    the products run in the base's dtype, which is also the output's.
    """

    merged_weight: Tensor | None

    def __init__(
        self,
        base: nn.Linear | Conv1D,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        rank_stabilised: bool = False,
        rows: tuple[Rows, ...] = (),
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = features(base)
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.rank_stabilised = rank_stabilised
        self.rows = rows or (Rows(0, self.out_features),)
        self.base = base
        height = sum(block.height for block in self.rows)
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        zeros = partial(torch.zeros, device=base.weight.device, dtype=dtype)
        self.lora_A = nn.Parameter(zeros(len(self.rows) * rank, self.in_features))
        self.lora_B = nn.Parameter(zeros(height, rank))
        self.register_buffer("merged_weight", None, persistent=False)

    @property
    def scaling(self) -> float:
        """s, the factor before BA."""
        return scaling(self.rank, self.alpha, self.rank_stabilised)

    @property
    def frozen_weight(self) -> Tensor:
        """W as a view (out, in)."""
        return as_matrix(self.base, self.base.weight).t()

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw A uniform in ±1/√in, as Microsoft's LoRA and PEFT do; set B to 0.

        A is drawn on the CPU in fp32, so that a seed means the same adapter on every device.
        """
        drawn = torch.empty(self.lora_A.shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.lora_A.copy_(drawn)
        self.lora_B.zero_()

    def blocks(self) -> list[tuple[Rows, Tensor, Tensor]]:
        """Each block of rows with its A (rank, in) and B (height, rank)."""
        heights = [block.height for block in self.rows]
        a_blocks, b_blocks = torch.split(self.lora_A, self.rank), torch.split(self.lora_B, heights)
        return list(zip(self.rows, a_blocks, b_blocks, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out), both in the base's dtype."""
        flat = x.reshape(-1, self.in_features)
        if self.merged_weight is None:
            y = self._adapted(flat)
        else:
            y = _affine(flat, as_matrix(self.base, self.merged_weight), self.base.bias)
        return y.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def summed_weight(self) -> Tensor:
        """W + s BA, laid out as W; summed in fp32, then rounded once to the dtype of W."""
        total = self.base.weight.to(self.lora_A.dtype, copy=True)
        by_rows = as_matrix(self.base, total).t()
        for block, a, b in self.blocks():
            by_rows[block.slice].addmm_(b, a, alpha=self.scaling)
        return total.to(self.base.weight.dtype)

    def merge(self) -> None:
        """Answer with the summed weight from now on. It lies beside W, which stays as it is."""
        self.merged_weight = self.summed_weight()

    def unmerge(self) -> None:
        """Answer with W and the update apart again: exactly as before, as W was never changed."""
        self.merged_weight = None

    def _adapted(self, x: Tensor) -> Tensor:
        result: Tensor = _LowRankLinear.apply(  # type: ignore[no-untyped-call]
            x,
            as_matrix(self.base, self.base.weight),
            self.base.bias,
            self.lora_A.to(x.dtype),
            self.lora_B.to(x.dtype),
            self._dropout_mask(x),
            self.rows,
            self.scaling,
        )
        return result

    def _dropout_mask(self, x: Tensor) -> Tensor | None:
        if self.dropout == 0 or not self.training:
            return None
        return F.dropout(torch.ones_like(x), self.dropout)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Every adapted layer of the model by its name, in the model's order."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)
    }


def features(base: nn.Linear | Conv1D) -> tuple[int, int]:
    """(in, out)."""
    height, width = as_matrix(base, base.weight).shape
    return height, width


class _LowRankLinear(torch.autograd.Function):
    """y = x M + b + s (x ∘ mask) Aᵀ Bᵀ, for M (in, out) and b frozen.

    The update is added into y, and its part of x's gradient into that of the frozen product, both
    in place: nothing of the size of x or y is made twice. Where nothing trainable lies below, x's
    gradient is not computed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        mask: Tensor | None,
        rows: tuple[Rows, ...],
        scale: float,
    ) -> Tensor:
        dropped = x if mask is None else x * mask
        hidden = _scaled_product(scale, dropped, a.t())
        # Elsewhere than on a CPU the large product adds the bias as it ends, for nothing.
        if x.is_cpu and bias is not None and len(b) == len(bias):
            y = x @ matrix
            _add_update_and_bias(y, hidden, b, rows, bias)
        else:
            y = _affine(x, matrix, bias)
            add_update(y, hidden, b, rows)
        ctx.rows, ctx.scale = rows, scale
        ctx.save_for_backward(dropped, matrix, a, b, mask, hidden)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        dropped, matrix, a, b, mask, hidden = ctx.saved_tensors
        blocks = _by_block(ctx.rows, hidden, b)
        d_hidden = _joined(
            [
                _scaled_product(ctx.scale, dy[:, block.slice], b_block)
                for block, _, b_block in blocks
            ],
            dim=1,
        )
        d_a = d_hidden.t() @ dropped
        d_b = _joined([_thin_product(dy[:, block.slice], h) for block, h, _ in blocks])
        dx = _input_gradient(dy, matrix, d_hidden, a, mask) if ctx.needs_input_grad[0] else None
        return dx, None, None, d_a, d_b, None, None, None


def add_update(y: Tensor, hidden: Tensor, b: Tensor, rows: tuple[Rows, ...]) -> None:
    """y += h Bᵀ in place, by blocks: y (n, out), h = s x Aᵀ (n, k·rank), B (heights, rank)."""
    for block, h, b_block in _by_block(rows, hidden, b):
        y[:, block.slice].addmm_(h, b_block.t())


def _add_update_and_bias(
    y: Tensor, hidden: Tensor, b: Tensor, rows: tuple[Rows, ...], bias: Tensor
) -> None:
    """Add both in one product, the bias being that of a hidden unit which is always 1.

    On a CPU `addmm` would write the bias to all of y before its large product, and read it again.
    """
    one = hidden.new_ones(len(hidden), 1)
    for block, h, b_block in _by_block(rows, hidden, b):
        with_bias = torch.cat([b_block, bias[block.slice, None]], dim=1)
        y[:, block.slice].addmm_(torch.cat([h, one], dim=1), with_bias.t())


def _input_gradient(
    dy: Tensor, matrix: Tensor, d_hidden: Tensor, a: Tensor, mask: Tensor | None
) -> Tensor:
    dx = dy @ matrix.t()
    if mask is None:
        return dx.addmm_(d_hidden, a)
    return dx.addcmul_(d_hidden @ a, mask)


def _by_block(
    rows: tuple[Rows, ...], hidden: Tensor, b: Tensor
) -> list[tuple[Rows, Tensor, Tensor]]:
    """Each block of rows with its columns of `hidden` (n, k·rank) and its rows of B."""
    heights = [block.height for block in rows]
    h_blocks, b_blocks = torch.split(hidden, b.shape[1], dim=1), torch.split(b, heights)
    return list(zip(rows, h_blocks, b_blocks, strict=True))


def _scaled_product(scale: float, left: Tensor, right: Tensor) -> Tensor:
    """Without a pass of its own over the result."""
    return torch.addmm(left.new_empty(1, 1), left, right, beta=0, alpha=scale)


def _thin_product(wide: Tensor, thin: Tensor) -> Tensor:
    """wideᵀ thin. On a CPU the other order is up to five times faster, but leaves it transposed."""
    return (thin.t() @ wide).t() if wide.is_cpu else wide.t() @ thin


def _joined(pieces: list[Tensor], dim: int = 0) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _affine(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return x @ matrix if bias is None else torch.addmm(bias, x, matrix)


def as_matrix(base: nn.Linear | Conv1D, weight: Tensor) -> Tensor:
    """`weight`, laid out as that of `base`, as a view (in, out)."""
    return weight if isinstance(base, Conv1D) else weight.t()
