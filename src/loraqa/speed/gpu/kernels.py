"""Triton kernels for attention over packed trees on a GPU.

They follow flash attention (Dao et al. 2022, arXiv:2205.14135), but every query sees two runs of
keys: the trunk of its tree, and the tokens before it in its own trunk or branch. A block of queries
visits only keys from the start of its first tree on; a block of keys visits only queries up to the
end of its last tree. One program computes each number, so results have the same bits each time.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from loraqa.speed.gpu.visibility import BLOCK, Queries

# Kernels compute places of numbers in 32 bits.
_MOST_NUMBERS = 2**31 - 1
# Weights are powers of 2, because a GPU computes these faster than powers of e.
_LOG2_E = 1.4426950408889634


def attend(query: Tensor, key: Tensor, value: Tensor, queries: Queries, scaling: float) -> Tensor:
    """Compute softmax(scaling · QKᵀ) V, with a gradient.

    Args:
        query: (1, heads, Q, head size).
        key, value: (1, key heads, T, head size); heads is a multiple of key heads.
        queries: which queries see which keys.
        scaling: factor on the products.

    Returns:
        (1, heads, Q, head size).

    Raises:
        ValueError: values are not as wide as keys and queries, or there are more numbers than the
            kernels can count (more than 200,000 tokens of most models).
    """
    if key.shape != value.shape or key.shape[-1] != query.shape[-1]:
        raise ValueError("queries, keys and values differ in their width")
    if max(map(_last_place, (query, key, value))) > _MOST_NUMBERS:
        raise ValueError(
            "a packed sequence is too long for the Triton kernels; compute fewer tokens at once"
        )
    attended: Tensor = _Attend.apply(
        *(each.squeeze(0).transpose(0, 1) for each in (query, key, value)), queries, scaling
    )
    return attended.transpose(0, 1)[None]


def _last_place(states: Tensor) -> int:
    return sum((n - 1) * stride for n, stride in zip(states.shape, states.stride(), strict=True))


class _Attend(torch.autograd.Function):
    """All tensors are (tokens, heads, head size), so that the heads of a token lie together."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, queries: Queries, scaling: float
    ) -> Tensor:
        query, key, value = (_rows_in_order(each) for each in (query, key, value))
        count, heads, _ = query.shape
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        sums = torch.empty(heads, count, dtype=torch.float32, device=query.device)
        _forward[triton.cdiv(count, BLOCK), heads](
            *(query, key, value, attended, sums),
            *(queries.places, queries.sees, queries.keys),
            *_strides(query, key, value),
            *(count, scaling * _LOG2_E),
            **_shape(query, key),
        )
        ctx.save_for_backward(query, key, value, attended, sums)
        ctx.queries, ctx.scaling = queries, scaling
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended, sums = ctx.saved_tensors
        d_attended = grads[0].contiguous()
        queries: Queries = ctx.queries
        count, heads, _ = query.shape
        tokens, key_heads, _ = key.shape
        d_query, d_key, d_value = (
            torch.empty_like(each, memory_format=torch.contiguous_format)
            for each in (query, key, value)
        )
        # Σ attended · gradient of each query; the first kernel computes it for the second.
        deltas = torch.empty_like(sums)
        strides, shape = _strides(query, key, value), _shape(query, key)
        scalings = ctx.scaling, ctx.scaling * _LOG2_E
        _backward_of_queries[triton.cdiv(count, BLOCK), heads](
            *(query, key, value, attended, sums, d_attended, deltas, d_query),
            *(queries.places, queries.sees, queries.keys),
            *(*strides, count, *scalings),
            **shape,
        )
        _backward_of_keys[triton.cdiv(tokens, BLOCK), key_heads](
            *(query, key, value, sums, d_attended, deltas, d_key, d_value),
            *(queries.places, queries.sees, queries.queries),
            *(*strides, count, tokens, *scalings),
            # Loading ahead would cost more shared memory than it saves time.
            **(shape | {"num_stages": 1}),
        )
        return d_query, d_key, d_value, None, None


def _rows_in_order(states: Tensor) -> Tensor:
    return states if states.stride(2) == 1 else states.contiguous()


def _strides(*states: Tensor) -> Sequence[int]:
    """Return the strides of tokens and heads of each tensor."""
    return [stride for each in states for stride in each.stride()[:2]]


def _shape(query: Tensor, key: Tensor) -> dict[str, Any]:
    """Return the constants that kernels are compiled for; Triton's own options come last."""
    _, heads, size = query.shape
    return {
        "heads": heads,
        "groups": heads // key.shape[1],
        "size": size,
        # Triton's products have sizes that are powers of 2, and at least 16.
        "width": max(triton.next_power_of_2(size), 16),
        "block": BLOCK,
        # Three TF32 products are as precise as one fp32 product, and many times as fast on a GPU
        # that has them. For bf16 there is one kind only.
        "precision": "tf32x3" if query.dtype == torch.float32 else "tf32",
        "num_warps": 4,
        "num_stages": 2 if size <= 64 else 1,
    }


@triton.jit
def _sight(places, sees, count, rows, real):
    """Load `Queries` for a block of queries; queries beyond the last see nothing."""
    place = tl.load(places + rows, real, -1)
    start = tl.load(sees + rows, real, 0)
    end = tl.load(sees + count + rows, real, 0)
    own = tl.load(sees + 2 * count + rows, real, 0)
    return place, start, end, own


@triton.jit
def _sees(column, start, end, own, place):
    return (((column >= start) & (column < end)) | (column >= own)) & (column <= place)


@triton.jit(do_not_specialize=["count"])
def _forward(
    query,
    key,
    value,
    attended,
    sums,
    places,
    sees,
    keys,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    count,
    log_scaling,
    heads: tl.constexpr,
    groups: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Compute the sums (block, size) of one head, and log₂ Σ 2^score of each query."""
    number, head = tl.program_id(0), tl.program_id(1)
    rows = number * block + tl.arange(0, block)
    inner = tl.arange(0, width)
    real = rows < count
    whole = real[:, None] & (inner < size)[None, :]
    q = tl.load(query + head * query_head + rows[:, None] * query_token + inner, whole, 0.0)
    place, start, end, own = _sight(places, sees, count, rows, real)
    first = tl.load(keys + number)
    last = tl.load(keys + tl.num_programs(0) + number)
    key += (head // groups) * key_head
    value += (head // groups) * value_head
    top = tl.full([block], float("-inf"), tl.float32)
    total = tl.zeros([block], tl.float32)
    result = tl.zeros([block, width], tl.float32)
    for begin in range(first, last, block):
        columns = begin + tl.arange(0, block)
        there = (columns < last)[:, None] & (inner < size)[None, :]
        k = tl.load(key + columns[:, None] * key_token + inner, there, 0.0)
        v = tl.load(value + columns[:, None] * value_token + inner, there, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * log_scaling
        seen = _sees(columns[None, :], start[:, None], end[:, None], own[:, None], place[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        # A query may have seen no key yet.
        level = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - level[:, None])
        decay = tl.exp2(top - level)
        total = total * decay + tl.sum(weights, 1)
        result = result * decay[:, None]
        result += tl.dot(weights.to(v.dtype), v, input_precision=precision)
        top = higher
    result = result / tl.where(real, total, 1.0)[:, None]
    target = attended + (rows[:, None] * heads + head) * size + inner
    tl.store(target, result.to(attended.dtype.element_ty), whole)
    tl.store(sums + head * count + rows, top + tl.log2(total), real)


@triton.jit(do_not_specialize=["count"])
def _backward_of_queries(
    query,
    key,
    value,
    attended,
    sums,
    d_attended,
    deltas,
    d_query,
    places,
    sees,
    keys,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    count,
    scaling,
    log_scaling,
    heads: tl.constexpr,
    groups: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Compute the gradient of a block of queries of one head, and their deltas."""
    number, head = tl.program_id(0), tl.program_id(1)
    rows = number * block + tl.arange(0, block)
    inner = tl.arange(0, width)
    real = rows < count
    whole = real[:, None] & (inner < size)[None, :]
    by_token = (rows[:, None] * heads + head) * size + inner
    q = tl.load(query + head * query_head + rows[:, None] * query_token + inner, whole, 0.0)
    d_out = tl.load(d_attended + by_token, whole, 0.0)
    out = tl.load(attended + by_token, whole, 0.0)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
    tl.store(deltas + head * count + rows, delta, real)
    level = tl.load(sums + head * count + rows, real, 0.0)
    place, start, end, own = _sight(places, sees, count, rows, real)
    first = tl.load(keys + number)
    last = tl.load(keys + tl.num_programs(0) + number)
    key += (head // groups) * key_head
    value += (head // groups) * value_head
    result = tl.zeros([block, width], tl.float32)
    for begin in range(first, last, block):
        columns = begin + tl.arange(0, block)
        there = (columns < last)[:, None] & (inner < size)[None, :]
        k = tl.load(key + columns[:, None] * key_token + inner, there, 0.0)
        v = tl.load(value + columns[:, None] * value_token + inner, there, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * log_scaling
        seen = _sees(columns[None, :], start[:, None], end[:, None], own[:, None], place[:, None])
        weights = tl.where(seen, tl.exp2(scores - level[:, None]), 0.0)
        d_weights = tl.dot(d_out, tl.trans(v), input_precision=precision)
        d_scores = weights * (d_weights - delta[:, None])
        result += tl.dot(d_scores.to(k.dtype), k, input_precision=precision)
    tl.store(d_query + by_token, (result * scaling).to(d_query.dtype.element_ty), whole)


@triton.jit(do_not_specialize=["count", "tokens"])
def _backward_of_keys(
    query,
    key,
    value,
    sums,
    d_attended,
    deltas,
    d_key,
    d_value,
    places,
    sees,
    queries,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    count,
    tokens,
    scaling,
    log_scaling,
    heads: tl.constexpr,
    groups: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Compute the gradients of a block of keys and values of one key head."""
    number, key_number = tl.program_id(0), tl.program_id(1)
    columns = number * block + tl.arange(0, block)
    inner = tl.arange(0, width)
    there = (columns < tokens)[:, None] & (inner < size)[None, :]
    k = tl.load(key + key_number * key_head + columns[:, None] * key_token + inner, there, 0.0)
    v = tl.load(
        value + key_number * value_head + columns[:, None] * value_token + inner, there, 0.0
    )
    first = tl.load(queries + number)
    last = tl.load(queries + tl.num_programs(0) + number)
    key_result = tl.zeros([block, width], tl.float32)
    value_result = tl.zeros([block, width], tl.float32)
    for group in range(groups):
        head = key_number * groups + group
        for begin in range(first, last, block):
            rows = begin + tl.arange(0, block)
            real = rows < last
            whole = real[:, None] & (inner < size)[None, :]
            q = tl.load(query + head * query_head + rows[:, None] * query_token + inner, whole, 0.0)
            by_token = (rows[:, None] * heads + head) * size + inner
            d_out = tl.load(d_attended + by_token, whole, 0.0)
            level = tl.load(sums + head * count + rows, real, 0.0)
            delta = tl.load(deltas + head * count + rows, real, 0.0)
            place, start, end, own = _sight(places, sees, count, rows, real)
            scores = tl.dot(k, tl.trans(q), input_precision=precision)
            scores *= log_scaling
            seen = _sees(
                columns[:, None], start[None, :], end[None, :], own[None, :], place[None, :]
            )
            weights = tl.where(seen, tl.exp2(scores - level[None, :]), 0.0)
            value_result += tl.dot(weights.to(d_out.dtype), d_out, input_precision=precision)
            d_weights = tl.dot(v, tl.trans(d_out), input_precision=precision)
            d_scores = weights * (d_weights - delta[None, :])
            key_result += tl.dot(d_scores.to(q.dtype), q, input_precision=precision)
    # Keys and values lie alike, with all key heads of a token together.
    by_token = (columns[:, None] * tl.num_programs(1) + key_number) * size + inner
    tl.store(d_key + by_token, (key_result * scaling).to(d_key.dtype.element_ty), there)
    tl.store(d_value + by_token, value_result.to(d_value.dtype.element_ty), there)
