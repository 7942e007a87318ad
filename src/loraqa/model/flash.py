"""Attention of segments one after another, by the flash kernels that PyTorch has for a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Runs of queries, and the run of keys that all of each see.

    Attributes:
        queries, keys: (segments + 1,) int32, where each starts; the last is where the last ends.
        longest_queries, longest_keys: of a segment, or more.
        used: (segments,) int32, how many of a segment's keys are seen; None for all.
    """

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int
    used: Tensor | None = None


def attend_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float
) -> tuple[Tensor, Tensor]:
    """softmax(scaling · QKᵀ) V of each segment, without a gradient.

    Args:
        query: (Q, heads, head size), bf16 or fp16.
        key, value: (K, key heads, head size); heads is a multiple of key heads.
        segments: who sees whom.
        scaling: factor on the products.

    Returns:
        (Q, heads, head size), and ln Σ exp(scaling · q·k) of each query, (heads, Q) in fp32.
    """
    attended, sums, *_ = torch.ops.aten._flash_attention_forward(
        *(query, key, value, segments.queries, segments.keys),
        *(segments.longest_queries, segments.longest_keys, 0.0, False, False),
        scale=scaling,
        seqused_k=segments.used,
    )
    return attended, sums


def merge(one: Tensor, one_sums: Tensor, other: Tensor, other_sums: Tensor) -> Tensor:
    """What queries get that see the keys of two of `attend_segments`' results."""
    share = torch.sigmoid(other_sums - one_sums).to(one.dtype)
    return torch.lerp(one, other, share.t()[..., None])
