"""The compiled GELU is transformers' own, and is taken only where it works and pays."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from loraqa.model import compiled
from loraqa.model.compiled import CompiledGelu, compile_gelu

measured_seconds = compiled._seconds


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is known of the compiler is forgotten, and no clock has a say."""
    monkeypatch.setattr(compiled, "_seconds", seconds(ours=1, pytorchs=2))
    forget = compiled._compiles.cache_clear
    forget()
    yield
    forget()


def seconds(ours: float, pytorchs: float) -> Any:
    return lambda activation, _: ours if isinstance(activation, CompiledGelu) else pytorchs


def with_gradient(activation: nn.Module, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    y = activation(x)
    return y, torch.autograd.grad((y * weights).sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 33, 20), (7,), (1, 1, 4)])
def test_it_is_the_gelu_of_transformers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not compiled._compiles(dtype):
        pytest.skip("no C++ compiler works here")
    generator = torch.Generator().manual_seed(0)
    x, weights = (4 * torch.randn(shape, generator=generator) for _ in range(2))
    x, weights = x.to(dtype).requires_grad_(), weights.to(dtype)
    exact = x.detach().double().requires_grad_()
    expected = with_gradient(NewGELUActivation(), exact, weights.double())
    actual = with_gradient(CompiledGelu(), x, weights)
    tolerance = 2 * torch.finfo(dtype).eps
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_an_older_pytorch_is_not_asked_for_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch._inductor.list_options", lambda: ["cpp.vec_isa_ok", "cpp.threads"])
    monkeypatch.setattr(torch, "compile", lambda _, **given: given["options"])
    assert compiled._compiled.__wrapped__() == {"cpp.vec_isa_ok": True}


def gelus(model: nn.Module) -> list[nn.Module]:
    return [layer.mlp.act for layer in model.transformer.h]  # type: ignore[union-attr]


def gpt2(monkeypatch: pytest.MonkeyPatch, works: bool = True) -> Any:
    """A model of GPT-2's kind, where compiling counts as working without being done."""
    monkeypatch.setattr(compiled, "_compiles", lambda _: works)
    model = tiny_model("gpt2")
    for layer in model.transformer.h:
        layer.mlp.act = nn.GELU(approximate="tanh")
    return model


def test_long_trainings_are_compiled_and_short_ones_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2(monkeypatch)
    enough = int(compiled._WORTH_IT / model.num_parameters()) + 1
    assert not compile_gelu(model, enough // 2)
    assert not any(isinstance(gelu, CompiledGelu) for gelu in gelus(model))
    assert compile_gelu(model, enough)
    assert all(isinstance(gelu, CompiledGelu) for gelu in gelus(model))


def test_other_activations_and_dtypes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2(monkeypatch)
    model.transformer.h[0].mlp.act = erf = nn.GELU()
    compile_gelu(model, 10**12)
    assert gelus(model)[0] is erf
    precise = gpt2(monkeypatch).double()
    assert not compile_gelu(precise, 10**12)
    assert not any(isinstance(gelu, CompiledGelu) for gelu in gelus(precise))


def test_without_a_compiler_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(compiled, "_compiled", broken)
    with caplog.at_level("INFO", "loraqa"):
        assert not compiled._compiles(torch.float32)
    assert caplog.messages == ["GELU is not compiled: no compiler."]
    model = gpt2(monkeypatch, works=False)
    assert not compile_gelu(model, 10**12)
    assert not any(isinstance(gelu, CompiledGelu) for gelu in gelus(model))


@pytest.mark.parametrize(
    ("ours", "messages"), [(1, []), (5, ["GELU is not compiled: it is no faster than PyTorch's."])]
)
def test_what_is_slower_than_pytorchs_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ours: float,
    messages: list[str],
) -> None:
    # As where TORCH_COMPILE_DISABLE is set.
    monkeypatch.setattr(compiled, "_compiled", lambda: compiled._value_and_slope)
    monkeypatch.setattr(compiled, "_seconds", seconds(ours, pytorchs=2))
    with caplog.at_level("INFO", "loraqa"):
        assert compiled._compiles(torch.bfloat16) == (not messages)
    assert caplog.messages == messages


def test_it_is_timed_with_its_gradient() -> None:
    calls: list[str] = []

    class Noted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append("forward")
            y = 2 * x
            y.register_hook(lambda _: calls.append("backward"))
            return y

    assert measured_seconds(Noted(), torch.ones(3, requires_grad=True)) > 0
    assert calls[:2] == ["forward", "backward"]


def test_a_kernel_that_computes_something_else_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = compiled._value_and_slope(x)
        return y, 2 * slope

    monkeypatch.setattr(compiled, "_compiled", lambda: wrong_slope)
    assert not compiled._compiles(torch.float32)
