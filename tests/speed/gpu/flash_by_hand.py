"""A GPU's attention by plain operations on any device, in place of its kernels."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from loraqa.speed.gpu.flash import Segments
from loraqa.speed.gpu.trees import Queries


def attend(query: Tensor, key: Tensor, value: Tensor, queries: Queries, scaling: float) -> Tensor:
    """See `tree_kernels.attend`."""
    first, end, own = queries.sees.long()[:, :, None]
    keys = torch.arange(key.shape[2], device=key.device)
    seen = (((first <= keys) & (keys < end)) | (own <= keys)) & (keys <= queries.places[:, None])
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = (scaling * (query @ key.transpose(2, 3))).masked_fill(~seen, -math.inf)
    return scores.softmax(dim=-1) @ value


def attend_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float
) -> tuple[Tensor, Tensor]:
    """See `flash.attend_segments`."""
    edges = segments.queries.tolist(), segments.keys.tolist()
    used = [end - start for start, end in pairwise(edges[1])]
    if segments.used is not None:
        used = segments.used.tolist()
    assert max(end - start for start, end in pairwise(edges[0])) <= segments.longest_queries
    assert max(used) <= segments.longest_keys
    attended = torch.full_like(query, math.nan)
    sums = query.new_full((query.shape[1], len(query)), math.nan)
    groups = query.shape[1] // key.shape[1]
    for (start, end), first, count in zip(pairwise(edges[0]), edges[1], used, strict=False):
        keys, values = (
            each[first : first + count].repeat_interleave(groups, dim=1) for each in (key, value)
        )
        scores = scaling * torch.einsum("qhd,khd->hqk", query[start:end], keys)
        sums[:, start:end] = scores.logsumexp(dim=2)
        attended[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(dim=2), values)
    return attended, sums
