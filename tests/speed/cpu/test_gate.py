"""The compiled product of a gate computes what PyTorch computes."""

import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import assert_near, needs_compiler, tiny_config, tiny_model
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, Phi3Config

from loraqa.model.runner import TreeRunner
from loraqa.speed.cpu import gate
from loraqa.speed.cpu.gate import CompiledSilu
from loraqa.speed.trial import fastest

DTYPES = [torch.bfloat16, torch.float32]


def with_gradients(activation: Any, x: Tensor, up: Tensor, slope: Tensor) -> list[Tensor]:
    y = activation(x) * up
    return [y, *torch.autograd.grad(y, (x, up), slope)]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
# The last one is for several threads, none of which gets a whole number of vectors.
@pytest.mark.parametrize("shape", [(1, 33, 20), (7,), (0, 5), (3, 33_331)])
def test_it_is_the_product_of_pytorch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = [(4 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3)]
    x, up, slope = numbers
    exact = [each.double().requires_grad_() for each in numbers]
    expected = with_gradients(silu, *exact)
    actual = with_gradients(CompiledSilu(dtype), x.requires_grad_(), up.requires_grad_(), slope)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert_near(got, wanted, 4 * torch.finfo(dtype).eps)


@needs_compiler
@given(st.lists(st.floats(-80, 1e4, width=32), min_size=1, max_size=40))
def test_it_is_right_wherever_it_is_asked(values: list[float]) -> None:
    x, up = torch.tensor(values, requires_grad=True), torch.ones(len(values))
    exact = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y, expected = CompiledSilu(x.dtype)(x) * up, silu(exact)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-30)
    slopes = (torch.autograd.grad(each.sum(), at)[0] for each, at in ((y, x), (expected, exact)))
    # Near -1.28 the slope is 0, and its terms are not.
    torch.testing.assert_close(*(slope.double() for slope in slopes), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_factors_may_come_in_any_order_and_layout() -> None:
    x, up = torch.linspace(-5, 5, 60).view(6, 10), torch.linspace(2, -1, 60).view(6, 10)
    gated = CompiledSilu(x.dtype)
    assert torch.equal(up * gated(x), gated(x) * up)
    assert torch.equal(gated(x.t()) * up.t(), (gated(x) * up).t())


def test_other_dtypes_are_computed_at_once() -> None:
    x = torch.linspace(-5, 5, 60, dtype=torch.float64)
    assert torch.equal(CompiledSilu(torch.float32)(x), silu(x))


@needs_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_families_get_the_kernel(kind: str, dtype: str) -> None:
    model = tiny_model(kind, dtype)
    _, names = fastest(TreeRunner(model), ["training"])
    assert "compiled-gates" in names
    assert all(isinstance(layer.mlp.act_fn, CompiledSilu) for layer in model.model.layers)


@needs_compiler
def test_a_gate_need_not_be_called_gate() -> None:
    """Phi-3 computes gate and up in one layer, and multiplies in the other order."""
    config = Phi3Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=300,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(20)[None]
    expected = model(ids).logits
    _, names = fastest(TreeRunner(model), ["training"])
    assert "compiled-gates" in names
    model.set_attn_implementation("eager")
    assert_near(model(ids).logits, expected, 1e-5)


@needs_compiler
def test_a_silu_that_is_no_gate_stays(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config("gpt2")
    config.activation_function = "silu"
    model = AutoModelForCausalLM.from_config(config).eval()
    with caplog.at_level(logging.DEBUG, "loraqa"):
        _, names = fastest(TreeRunner(model), ["training"])
    assert "compiled-gates" not in names
    assert "compiled-gates is not used, because the model's SiLU is not the gate" in caplog.text
    assert not any(isinstance(module, CompiledSilu) for module in model.modules())


@needs_compiler
def test_a_gate_of_another_dtype_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda _, __, up: up.double())
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    ids = torch.arange(20)[None]
    expected = model(ids).logits
    with caplog.at_level(logging.DEBUG, "loraqa"):
        _, names = fastest(TreeRunner(model), ["training"])
    assert "compiled-gates" not in names
    assert "compiled-gates is not used, because the model's SiLU is not the gate" in caplog.text
    model.set_attn_implementation("eager")
    assert_near(model(ids).logits, expected, 1e-5)


@needs_compiler
def test_whatever_fails_the_model_keeps_its_silu(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TreeRunner(tiny_model("llama"))

    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(TreeRunner, "answer_logits", fail)
    with pytest.raises(RuntimeError):
        gate.wrap(runner)
    assert not any(isinstance(module, CompiledSilu) for module in runner.model.modules())


def test_it_is_for_known_dtypes() -> None:
    assert not gate.applies(TreeRunner(tiny_model("llama", "float64")), frozenset())
    assert not gate.applies(TreeRunner(tiny_model("gpt2")), frozenset())
    assert gate.applies(TreeRunner(tiny_model("llama")), frozenset())


def test_a_gate_takes_one_factor_of_its_shape() -> None:
    gated: Any = CompiledSilu(torch.float32)(torch.ones(3))
    for other in (torch.ones(2, 3), torch.ones(3).double()):
        with pytest.raises(TypeError, match="same shape and dtype"):
            gated * other
    with pytest.raises(TypeError):
        nn.functional.relu(gated)
