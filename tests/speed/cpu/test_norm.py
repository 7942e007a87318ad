"""The compiled norm computes what the norms of transformers compute."""

import logging
from typing import Any

import pytest
import torch
from tests.conftest import assert_near, needs_compiler, tiny_model
from torch import nn
from torch.nn.functional import rms_norm
from transformers import AutoModelForCausalLM, CohereConfig, GemmaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from loraqa.model.runner import TreeRunner
from loraqa.speed.cpu import norm
from loraqa.speed.cpu.norm import CompiledNorm
from loraqa.speed.trial import fastest

EPSILON = 1e-3
DTYPES = [torch.bfloat16, torch.float32]


def plain_norm(width: int, dtype: torch.dtype, generator: torch.Generator) -> LlamaRMSNorm:
    plain = LlamaRMSNorm(width, EPSILON)
    nn.init.uniform_(plain.weight, -2, 2, generator=generator)
    return plain.requires_grad_(False).to(dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
# The last one is for several threads; ε decides about the smallest size.
@pytest.mark.parametrize("shape", [(1, 7, 20), (3, 5), (1, 2, 3, 4), (0, 4), (701, 99)])
@pytest.mark.parametrize("size", [1e-2, 1, 100])
def test_it_is_the_norm_of_pytorch(dtype: torch.dtype, shape: tuple[int, ...], size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = plain_norm(shape[-1], dtype, generator)
    x, slope = (size * torch.randn(shape, generator=generator) + 0.5 * size for _ in range(2))
    x, slope = x.to(dtype).requires_grad_(), slope.to(dtype)
    y = CompiledNorm(plain, EPSILON)(x)
    exact = x.detach().double().requires_grad_()
    expected = rms_norm(exact, shape[-1:], plain.weight.double(), EPSILON)
    assert y.dtype == dtype
    assert_near(y, expected, 4 * torch.finfo(dtype).eps)
    gradient, wanted = (
        torch.autograd.grad(each, at, slope.to(each.dtype))[0]
        for each, at in ((y, x), (expected, exact))
    )
    assert gradient.dtype == dtype
    assert_near(gradient, wanted, 8 * torch.finfo(dtype).eps)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_norm_of_transformers_but_for_one_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = plain_norm(40, dtype, generator)
    x = torch.randn(30, 40, generator=generator).to(dtype)
    torch.testing.assert_close(CompiledNorm(plain, EPSILON)(x), plain(x))


@needs_compiler
def test_any_layout_gives_the_same_and_needs_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    compiled = CompiledNorm(plain_norm(12, torch.float32, generator), EPSILON)
    x = torch.randn(5, 12, generator=generator)
    with torch.inference_mode():
        assert torch.equal(compiled(x.t().contiguous().t()), compiled(x))


def test_other_dtypes_get_the_plain_norm() -> None:
    plain = plain_norm(12, torch.bfloat16, torch.Generator().manual_seed(0))
    x = torch.linspace(-1, 2, 24).view(2, 12)
    assert torch.equal(CompiledNorm(plain, EPSILON)(x), plain(x))


@needs_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("kind", "count"), [("llama", 5), ("mistral", 5), ("qwen2", 5), ("qwen3", 9)]
)
def test_all_norms_of_a_family_are_replaced(kind: str, count: int, dtype: str) -> None:
    model = tiny_model(kind, dtype).requires_grad_(False)
    weights = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
    _, names = fastest(TreeRunner(model), ["training"])
    assert "compiled-norms" in names
    assert sum(isinstance(module, CompiledNorm) for module in model.modules()) == count
    # Weights keep their names and places.
    assert {name: w.data_ptr() for name, w in model.state_dict().items()} == weights


@needs_compiler
@pytest.mark.parametrize(
    "config",
    [
        # Gemma multiplies with 1 + w, Cohere subtracts the mean; both look like Llama's norm.
        GemmaConfig(num_key_value_heads=2, intermediate_size=48, head_dim=8, pad_token_id=0),
        CohereConfig(num_key_value_heads=2, intermediate_size=48),
    ],
    ids=["gemma", "cohere"],
)
def test_norms_that_compute_something_else_stay(
    config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config.update({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4})
    config.update({"vocab_size": 50})
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    with caplog.at_level(logging.INFO, "loraqa"):
        _, names = fastest(TreeRunner(model.eval()), ["training"])
    assert "compiled-norms" not in names
    assert "compiled-norms is not used, because its outputs differ" in caplog.text
    assert not any(isinstance(module, CompiledNorm) for module in model.modules())


def test_it_is_for_frozen_norms_of_known_dtypes() -> None:
    trained, frozen = tiny_model("llama"), tiny_model("llama").requires_grad_(False)
    wide = tiny_model("llama", "float64").requires_grad_(False)
    applies = [norm.applies(TreeRunner(model), frozenset()) for model in (trained, frozen, wide)]
    assert applies == [False, True, False]
    assert not norm.applies(TreeRunner(tiny_model("gpt2").requires_grad_(False)), frozenset())
