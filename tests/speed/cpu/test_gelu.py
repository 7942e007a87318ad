"""The compiled GELU computes what transformers' own computes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import assert_near, needs_compiler, tiny_model
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from loraqa.model.runner import TreeRunner
from loraqa.speed import fused_gelu
from loraqa.speed.cpu import gelu
from loraqa.speed.cpu.gelu import CompiledGelu

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
    actual = with_gradient(CompiledGelu(dtype), x, weights)
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
    torch.testing.assert_close(CompiledGelu(x.dtype)(x).double(), exact, rtol=1e-4, atol=1e-30)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1], dtype=dtype)
    y = CompiledGelu(dtype)(x)
    assert y.isnan().tolist() == [True, False, False, False]
    assert y[1] == torch.inf
    assert abs(y[2]) < 1e-30 or y[2] == -torch.inf


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_value_is_the_same_without_a_gradient_and_in_any_layout(dtype: torch.dtype) -> None:
    x = torch.linspace(-5, 5, 12 * 34, dtype=dtype).view(12, 34)
    assert torch.equal(CompiledGelu(dtype)(x), CompiledGelu(dtype)(x.clone().requires_grad_()))
    assert torch.equal(CompiledGelu(dtype)(x.t()), CompiledGelu(dtype)(x).t())


@needs_compiler
def test_bf16_is_rounded_to_the_nearest() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    x = every[every.abs() < 100]
    # Rounding twice, to fp32 and then to bf16, meets the middle between two in none of them.
    expected = CompiledGelu(torch.float32)(x.float()).bfloat16()
    assert torch.equal(CompiledGelu(torch.bfloat16)(x), expected)


def test_in_fp64_it_is_the_gelu_of_transformers_too() -> None:
    x = torch.linspace(-5, 5, 100, dtype=torch.float64)
    assert_near(CompiledGelu(torch.float32)(x), NewGELUActivation()(x), 1e-12)


@needs_compiler
def test_a_model_gets_the_kernel_for_its_dtype() -> None:
    runner = TreeRunner(tiny_model("gpt2"))
    assert not gelu.applies(runner, frozenset())
    faster = gelu.wrap(fused_gelu.wrap(runner))
    activation = faster.model.transformer.h[0].mlp.act
    assert isinstance(activation, CompiledGelu)
    assert activation.dtype == torch.float32
    assert not gelu.applies(TreeRunner(tiny_model("gpt2", "float64")), frozenset())
