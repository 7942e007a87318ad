"""The compiled GELU is transformers' own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import assert_near, needs_compiler, tiny_model
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from loraqa.model.gelu import TanhGelu, compiled_gelu, fuse_gelu

DTYPES = [torch.bfloat16, torch.float32]


def with_gradient(activation: nn.Module, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    y = activation(x)
    return y, torch.autograd.grad((y * weights).sum(), x)[0]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
# The last one is for several threads, none of which gets a whole number of vectors.
@pytest.mark.parametrize("shape", [(1, 33, 20), (7,), (1, 1, 4), (0, 5), (3, 33_331)])
def test_it_is_the_gelu_of_transformers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = (4 * torch.randn(shape, generator=generator) for _ in range(2))
    x, weights = x.to(dtype).requires_grad_(), weights.to(dtype)
    exact = x.detach().double().requires_grad_()
    expected = with_gradient(NewGELUActivation(), exact, weights.double())
    actual = with_gradient(TanhGelu(), x, weights)
    tolerance = 4 * torch.finfo(dtype).eps
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance * size(wanted))


def size(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0


@needs_compiler
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40))
@settings(deadline=None)
def test_it_is_right_wherever_it_is_asked(values: list[float]) -> None:
    x = torch.tensor(values)
    # 1 + tanh(u), of which little is left below -6 even in fp64, is twice the logistic of 2u.
    wide = x.double()
    exact = wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    # Of the value itself, down to where e^x becomes too small for fp32.
    torch.testing.assert_close(TanhGelu()(x).double(), exact, rtol=1e-4, atol=1e-30)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1], dtype=dtype)
    y = TanhGelu()(x)
    assert y.isnan().tolist() == [True, False, False, False]
    assert y[1] == torch.inf
    assert abs(y[2]) < 1e-30 or y[2] == -torch.inf


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_value_is_the_same_without_a_gradient_and_in_any_layout(dtype: torch.dtype) -> None:
    x = torch.linspace(-5, 5, 12 * 34, dtype=dtype).view(12, 34)
    assert torch.equal(TanhGelu()(x), TanhGelu()(x.clone().requires_grad_()))
    assert torch.equal(TanhGelu()(x.t()), TanhGelu()(x).t())


@needs_compiler
def test_bf16_is_rounded_to_the_nearest() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    x = every[every.abs() < 100]
    # Rounding twice, to fp32 and then to bf16, meets the middle between two in none of them.
    expected = TanhGelu()(x.float()).bfloat16()
    assert torch.equal(TanhGelu()(x), expected)


def test_in_fp64_it_is_the_gelu_of_transformers_too() -> None:
    x = torch.linspace(-5, 5, 100, dtype=torch.float64)
    assert_near(TanhGelu()(x), NewGELUActivation()(x), 1e-12)


@needs_compiler
def test_it_is_told_whether_a_model_has_it() -> None:
    model = tiny_model("gpt2")
    assert not compiled_gelu(model)
    fuse_gelu(model)
    assert compiled_gelu(model)
    assert not compiled_gelu(model.double())
