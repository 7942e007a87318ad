"""Attention in parts, by the variable-length flash kernels that PyTorch has for a GPU.

A part is a list of segments: queries, and the keys that all of them see. What queries see in two
parts is merged by the logarithms of their sums of exponentials, as in ring attention (Liu et al.
2023); with the merged sums, the kernels' own gradients add up to that of the whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Part:
    """Segments, one after another in their rows.

    Attributes:
        queries, keys: (segments + 1,) int32, where each starts; the last is where the last ends.
        longest_queries, longest_keys: of a segment, or more.
        causal: whether the queries are the last of their keys, and each sees no later ones.
        used: (segments,) int32, how many of a segment's keys are seen; None for all.
    """

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int
    causal: bool = False
    used: Tensor | None = None


def attend_parts(
    query: Tensor, key: Tensor, value: Tensor, own: Part, trunk: Part, scaling: float
) -> Tensor:
    """softmax(scaling · QKᵀ) V over what each query sees in both parts, with a gradient.

    Args:
        query: (Q, heads, head size), bf16 or fp16.
        key, value: (K, key heads, head size); heads is a multiple of key heads.
        own: in which every query sees a key, or its result is 0.
        trunk: in which a query may see none. Queries and keys in no segment get anything.
        scaling: factor on the products.

    Returns:
        (Q, heads, head size).
    """
    attended: Tensor = _AttendParts.apply(  # type: ignore[no-untyped-call]
        query, key, value, own, trunk, scaling
    )
    return attended


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, part: Part, scaling: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Attention within a part, (Q, heads, head size), without a gradient.

    Returns:
        Besides, ln Σ exp(scaling · q·k) over the keys of each query, (heads, Q) in fp32, infinite
        where it sees none; and what the gradient needs.
    """
    attended, sums, *state, _ = torch.ops.aten._flash_attention_forward(
        *(query, key, value, part.queries, part.keys, part.longest_queries, part.longest_keys),
        *(0.0, part.causal, False),
        scale=scaling,
        seqused_k=part.used,
    )
    return attended, sums, tuple(state)


def merge(
    own: Tensor, own_sums: Tensor, trunk: Tensor, trunk_sums: Tensor
) -> tuple[Tensor, Tensor]:
    """What `attend_part` gives for both parts together; `own` where nothing of a trunk is seen."""
    trunk_sums = trunk_sums.nan_to_num(posinf=-torch.inf, neginf=-torch.inf)
    share = torch.sigmoid(trunk_sums - own_sums).to(own.dtype)
    return torch.lerp(own, trunk, share.t()[..., None]), torch.logaddexp(own_sums, trunk_sums)


class _AttendParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, own: Part, trunk: Part, scaling: float
    ) -> Tensor:
        by_own, own_sums, own_state = attend_part(query, key, value, own, scaling)
        by_trunk, trunk_sums, trunk_state = attend_part(query, key, value, trunk, scaling)
        attended, sums = merge(by_own, own_sums, by_trunk, trunk_sums)
        ctx.save_for_backward(query, key, value, attended, sums, *own_state, *trunk_state)
        ctx.parts, ctx.scaling = (own, trunk), scaling
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended, sums, *states = ctx.saved_tensors
        with _same_bits():
            by_own, by_trunk = (
                part_gradients(
                    *(grads[0], query, key, value, attended, sums, part, state, ctx.scaling)
                )
                for part, state in zip(ctx.parts, (states[:2], states[2:]), strict=True)
            )
        d_query, d_key, d_value = (a.add_(b) for a, b in zip(by_own, by_trunk, strict=True))
        return d_query, d_key, d_value, None, None, None


def part_gradients(
    d_attended: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    sums: Tensor,
    part: Part,
    state: Sequence[Tensor],
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A part's share of the gradients of query, key and value.

    `attended` and `sums` are those of all parts together, `state` is what `attend_part` gave.
    """
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        *(d_attended, query, key, value, attended, sums, part.queries, part.keys),
        *(part.longest_queries, part.longest_keys, 0.0, part.causal, *state),
        scale=scaling,
    )
    return gradients


@contextmanager
def _same_bits() -> Iterator[None]:
    """Else the kernel adds up the gradient of a query in any order."""
    options: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        options.fill_uninitialized_memory = before[1]
