"""Attention within segments of different lengths, by PyTorch's flash kernels for a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Segments of queries, and for each the segment of keys that all its queries see.

    Attributes:
        queries, keys: (segments + 1,) int32, where each segment starts, and where the last ends.
        longest_queries, longest_keys: length of the longest segment, or more.
        used: (segments,) int32, how many keys of a segment are seen; None for all.
    """

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int
    used: Tensor | None = None


def attend_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float
) -> tuple[Tensor, Tensor]:
    """Compute softmax(scaling · QKᵀ) V of each segment, without a gradient.

    Args:
        query: (Q, heads, head size), bf16 or fp16.
        key, value: (K, key heads, head size); heads is a multiple of key heads.
        segments: which queries see which keys.
        scaling: factor on the products.

    Returns:
        The result (Q, heads, head size), and ln Σ exp(scaling · q·k) of each query, (heads, Q) in
        fp32.
    """
    attended, sums, *_ = torch.ops.aten._flash_attention_forward(
        *(query, key, value, segments.queries, segments.keys),
        *(segments.longest_queries, segments.longest_keys, 0.0, False, False),
        scale=scaling,
        seqused_k=segments.used,
    )
    return attended, sums


def merge(one: Tensor, one_sums: Tensor, other: Tensor, other_sums: Tensor) -> Tensor:
    """Join two results of `attend_segments` for the same queries on different keys."""
    share = torch.sigmoid(other_sums - one_sums).to(one.dtype)
    return torch.lerp(one, other, share.t()[..., None])
