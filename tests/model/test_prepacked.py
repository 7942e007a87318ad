"""Prepacked weights answer as the weights that they are made of."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.lora.adapt import adapt
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model import prepacked
from loraqa.model.prepacked import PrepackedLinear, prepack

IDS = torch.arange(3, 20)[None]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What is known of the processor is forgotten."""
    prepacked._works.cache_clear()
    yield
    prepacked._works.cache_clear()


def adapted(kind: str, targets: str, dtype: str = "float32") -> PreTrainedModel:
    model = tiny_model(kind, dtype)
    adapt(model, LoraSettings(rank=3, alpha=6.0, target_modules=(targets,)))
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.3, generator=generator)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(input_ids=IDS, use_cache=False).logits
    return result


def skip_without(dtype: torch.dtype) -> None:
    if not prepacked._works(dtype):
        pytest.skip(f"no prepacked products of {dtype} here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(24,), (5, 24), (1, 130, 24), (2, 3, 24)], ids=str)
@pytest.mark.parametrize("kind", ["linear", "no bias", "Conv1D"])
@torch.no_grad()
def test_a_layer_is_its_product(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    skip_without(dtype)
    layer: Any = Conv1D(40, 24) if kind == "Conv1D" else nn.Linear(24, 40, bias=kind == "linear")
    x = torch.randn(shape, dtype=dtype)
    layer = layer.to(dtype)
    torch.testing.assert_close(PrepackedLinear(layer)(x), layer(x))


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("gpt2", "all-linear"),
        ("gpt2", "c_attn[q,v]"),
        ("llama", "all-linear"),
        ("llama", "q_proj"),
    ],
)
def test_a_model_with_its_adapter_answers_as_before(kind: str, targets: str) -> None:
    skip_without(torch.float32)
    model = adapted(kind, targets)
    expected, embeddings = logits(model), model.get_input_embeddings().weight.clone()
    assert prepack(model)
    assert not lora_layers(model)
    assert not [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)


def test_a_bf16_model_keeps_its_adapter_beside_the_weights() -> None:
    skip_without(torch.bfloat16)
    model = adapted("gpt2", "all-linear", "bfloat16")
    expected = logits(model)
    assert prepack(model)
    error = (logits(model) - expected).float().norm() / expected.float().norm()
    assert error < 0.02


@pytest.mark.parametrize(
    ("kind", "targets"), [("gpt2", "all-linear"), ("gpt2", "c_attn[q,v]"), ("llama", "all-linear")]
)
@torch.no_grad()
def test_an_adapter_beside_the_weights_is_the_layer_in_eval_mode(kind: str, targets: str) -> None:
    for layer in lora_layers(adapted(kind, targets)).values():
        x = torch.randn(2, 5, layer.in_features)
        torch.testing.assert_close(prepacked._Adapted(layer)(x), layer(x))


def test_where_it_cannot_be_had_the_model_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: nn.Module) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(prepacked, "PrepackedLinear", fail)
    model = adapted("gpt2", "all-linear")
    expected = logits(model)
    with caplog.at_level(logging.INFO, "loraqa"):
        assert not prepack(model)
    assert "not laid out for answering: no such operator" in caplog.text
    assert lora_layers(model)
    assert torch.equal(logits(model), expected)


def test_wrong_products_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PrepackedLinear.forward
    monkeypatch.setattr(PrepackedLinear, "forward", lambda self, x: 1.1 * forward(self, x))
    assert not prepack(adapted("gpt2", "all-linear"))


def test_in_fp64_nothing_changes() -> None:
    model = adapted("gpt2", "all-linear", "float64")
    assert not prepack(model)
    assert lora_layers(model)


def test_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    before = torch.get_rng_state()
    prepack(adapted("gpt2", "all-linear"))
    assert torch.equal(torch.get_rng_state(), before)
