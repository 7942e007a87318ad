"""Attention of variable lengths as a GPU's kernels give it, segment by segment on any device."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from loraqa.model.flash import Part


def segments(part: Part) -> list[tuple[slice, slice]]:
    """Where each segment's queries and its seen keys lie."""
    queries, keys = part.queries.tolist(), part.keys.tolist()
    used = [b - a for a, b in pairwise(keys)]
    if part.used is not None:
        used = part.used.tolist()
    assert max(b - a for a, b in pairwise(queries)) <= part.longest_queries
    assert max(used) <= part.longest_keys
    return [
        (slice(queries[i], queries[i + 1]), slice(keys[i], keys[i] + used[i]))
        for i in range(len(used))
    ]


def scores(query: Tensor, key: Tensor, part: Part, scaling: float) -> Tensor:
    """(heads, queries, keys) of a segment; -inf where a query sees no key."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    products = scaling * torch.einsum("qhd,khd->hqk", query, key)
    if part.causal:
        seen = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
        products = products.masked_fill(~seen, -math.inf)
    return products


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, part: Part, scaling: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """See `flash.attend_part`. What is in no segment is not a number."""
    attended = torch.full_like(query, math.nan)
    sums = query.new_full((query.shape[1], len(query)), math.nan)
    groups = query.shape[1] // key.shape[1]
    for queries, keys in segments(part):
        if keys.stop == keys.start:
            attended[queries], sums[:, queries] = 0, math.inf
        elif queries.stop > queries.start:
            found = scores(query[queries], key[keys], part, scaling)
            sums[:, queries] = found.logsumexp(dim=2)
            values = value[keys].repeat_interleave(groups, dim=1)
            attended[queries] = torch.einsum("hqk,khd->qhd", found.softmax(dim=2), values)
    return attended, sums, (query.new_empty(0), query.new_empty(0))


def part_gradients(
    d_attended: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    sums: Tensor,
    part: Part,
    _state: object,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `flash.part_gradients`. What is in no segment is not a number."""
    d_query, d_key, d_value = (torch.full_like(each, math.nan) for each in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    for queries, keys in segments(part):
        d_query[queries], d_key[keys], d_value[keys] = 0, 0, 0
        if keys.stop == keys.start or queries.stop == queries.start:
            continue
        found = scores(query[queries], key[keys], part, scaling)
        weights = (found - sums[:, queries, None]).exp()
        d_out = d_attended[queries]
        values, states = (each[keys].repeat_interleave(groups, dim=1) for each in (value, key))
        d_weights = torch.einsum("qhd,khd->hqk", d_out, values)
        inner = (d_out * attended[queries]).sum(dim=2).t()[:, :, None]
        d_scores = scaling * weights * (d_weights - inner)
        d_query[queries] = torch.einsum("hqk,khd->qhd", d_scores, states)
        by_head = torch.einsum("hqk,qhd->khd", d_scores, query[queries])
        d_key[keys] = by_head.unflatten(1, (-1, groups)).sum(dim=2)
        by_head = torch.einsum("hqk,qhd->khd", weights, d_out)
        d_value[keys] = by_head.unflatten(1, (-1, groups)).sum(dim=2)
    return d_query, d_key, d_value
