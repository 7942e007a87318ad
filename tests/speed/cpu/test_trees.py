"""The compiled attention over trees is the plain one."""

import platform
import subprocess
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import assert_near, needs_compiler, tiny_model
from torch import Tensor

from loraqa.model.runner import TreeRunner
from loraqa.model.trees import PackedTreeAttention
from loraqa.prompt.batch import TreeBatch, TreeSpan
from loraqa.speed.cpu import native, trees
from loraqa.speed.cpu.trees import CompiledTreeAttention
from loraqa.speed.trial import fastest

CPU = torch.device("cpu")
SCALING = 0.3

# Trunk and branches of each tree, in tokens.
Lengths = list[tuple[int, list[int]]]


def batch(lengths: Lengths) -> TreeBatch:
    starts = accumulate((trunk + sum(branches) for trunk, branches in lengths), initial=0)
    spans = [
        TreeSpan(start, trunk, tuple(branches))
        for start, (trunk, branches) in zip(starts, lengths, strict=False)
    ]
    ids = torch.zeros(1, spans[-1].end, dtype=torch.long)
    none = torch.empty(0)
    return TreeBatch(ids, ids, tuple(spans), none, none, none)


def drawn(tokens: int, heads: int, key_heads: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and the slope of the result."""
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(1, tokens, count, size, generator=generator).to(dtype).transpose(1, 2)
        for count in (heads, key_heads, key_heads, heads)
    ]


def attended(kind: type, packed: TreeBatch, inputs: list[Tensor]) -> list[Tensor]:
    query, key, value, slope = (each.detach().requires_grad_() for each in inputs)
    result = kind(packed, CPU).attend(0, query, key, value, SCALING)
    return [result, *torch.autograd.grad(result, (query, key, value), slope)]


def check(lengths: Lengths, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    packed = batch(lengths)
    inputs = drawn(packed.spans[-1].end, *shape, dtype)
    expected = attended(PackedTreeAttention, packed, [each.double() for each in inputs])
    actual = attended(CompiledTreeAttention, packed, inputs)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert_near(got, wanted, 8 * torch.finfo(dtype).eps)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(9, 3, 64), (2, 2, 16), (3, 1, 8), (2, 1, 7), (1, 1, 80)])
@pytest.mark.parametrize(
    "lengths",
    [
        [(1, [1])],
        [(0, [3]), (2, [1] * 40)],
        [(64, [64, 1]), (16, [17])],
        # Blocks of queries end within trunks and branches.
        [(150, [33, 70, 9]), (5, [2]), (129, [130])],
    ],
    ids=str,
)
def test_it_is_the_plain_attention(
    lengths: Lengths, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    check(lengths, shape, dtype)


@needs_compiler
@pytest.mark.usefixtures("recompiled")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("flag", ["-mno-amx-bf16", "-mno-avx512bf16", "-mno-avx512f", "-mno-avx"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_older_processors_compute_the_same(
    dtype: torch.dtype, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AVX512 the kernel has other vectors; without AVX512-BF16 it multiplies in fp32."""
    known = ["cc", flag, "-E", "-xc", "/dev/null"]
    if subprocess.run(known, capture_output=True, check=False).returncode:
        pytest.skip(f"this compiler does not know {flag}")
    monkeypatch.setattr(native, "_FLAGS", [*native._FLAGS, flag])
    for shape in ((9, 3, 64), (2, 1, 7), (1, 1, 80)):
        check([(150, [33, 70, 9]), (1, [1]), (16, [17])], shape, dtype)


@needs_compiler
def test_any_layout_gives_the_same() -> None:
    packed = batch([(20, [5, 6])])
    inputs = drawn(31, 4, 2, 16, torch.float32)
    laid_out = [each.contiguous() for each in inputs]
    wide = [torch.stack([each, each], dim=-1)[..., 0] for each in inputs]
    expected = attended(CompiledTreeAttention, packed, inputs)
    for others in (laid_out, wide):
        for got, wanted in zip(
            attended(CompiledTreeAttention, packed, others), expected, strict=True
        ):
            assert torch.equal(got, wanted)


@needs_compiler
@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(1, 90), st.lists(st.integers(1, 70), min_size=1, max_size=4)),
        min_size=1,
        max_size=3,
    )
)
def test_it_is_the_plain_attention_of_any_trees(lengths: Lengths) -> None:
    check(lengths, (4, 2, 16), torch.float32)


@needs_compiler
def test_large_scores_stay_finite() -> None:
    packed = batch([(20, [5, 6])])
    inputs = [10 * each for each in drawn(31, 2, 1, 16, torch.float32)]
    for got, wanted in zip(
        attended(CompiledTreeAttention, packed, inputs),
        attended(PackedTreeAttention, packed, [each.double() for each in inputs]),
        strict=True,
    ):
        assert_near(got, wanted, 1e-3)


@needs_compiler
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_takes_the_place_of_products(kind: str) -> None:
    runner, names = fastest(TreeRunner(tiny_model(kind)), ["training"])
    assert isinstance(runner, TreeRunner)
    assert runner.make_tree_attention is CompiledTreeAttention
    assert "compiled-trees" in names
    assert "attention-by-products" not in names
    _, names = fastest(TreeRunner(tiny_model(kind)), ["training"], ["compiled-trees"])
    assert "attention-by-products" in names


def test_values_of_another_width_are_refused() -> None:
    query, key, value, _ = drawn(2, 2, 1, 8, torch.float32)
    with pytest.raises(ValueError, match="width"):
        CompiledTreeAttention(batch([(1, [1])]), CPU).attend(0, query, key, value[..., :4], 1)


def test_it_is_for_known_dtypes() -> None:
    assert trees.applies(TreeRunner(tiny_model("gpt2")), frozenset())
    assert not trees.applies(TreeRunner(tiny_model("gpt2", "float64")), frozenset())
