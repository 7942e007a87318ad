"""Prepacked weights answer as the weights that they are made of, or are not used."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import assert_near, tiny_model
from tests.model.test_choose import MODELS, bloom, model_of
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.lora.activated import acting_on
from loraqa.lora.adapt import adapt
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model.choose import choose_runner
from loraqa.speed import OF_MODELS
from loraqa.speed.cpu import prepacked
from loraqa.speed.cpu.prepacked import PrepackedLinear
from loraqa.speed.trial import fastest

IDS = torch.arange(3, 20)[None]
HAS_ONEDNN = torch.backends.mkldnn.is_available()
pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN")
DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            # oneDNN may be told to leave out what the processor can do (ONEDNN_MAX_CPU_ISA).
            not (
                HAS_ONEDNN
                and torch.ops.mkldnn._is_mkldnn_bf16_supported()
                and torch.cpu._is_avx512_bf16_supported()
            ),
            reason="no products of bf16 matrices on this processor",
        ),
    ),
]


def adapted(
    kind: str, targets: str, dtype: str = "float32", *, dora: bool = False
) -> PreTrainedModel:
    model = tiny_model(kind, dtype)
    adapt(model, LoraSettings(rank=3, alpha=6.0, dora=dora, target_modules=(targets,)))
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.3, generator=generator)
    return model


EVERYTHING_ELSE = [name for name in OF_MODELS if name != "prepacked-weights"]


def prepack(model: PreTrainedModel) -> None:
    """Try the acceleration alone, as `Reader.load` does, and leave the model's own attention."""
    implementation = model.config._attn_implementation
    fastest(choose_runner(model, 200), ["answering"], EVERYTHING_ELSE)
    model.set_attn_implementation(implementation)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(input_ids=IDS, use_cache=False).logits
    return result


def packed_layers(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, PrepackedLinear)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(24,), (0, 24), (1, 24), (1, 130, 24), (2, 3, 24)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_is_its_product(bias: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = nn.Linear(24, 40, bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 0.01}[dtype]
    assert_near(PrepackedLinear(layer.weight, layer.bias)(x), layer(x), tolerance)


@pytest.mark.parametrize(
    ("kind", "targets", "dora"),
    [
        ("gpt2", "all-linear", False),
        ("gpt2", "all-linear", True),
        ("gpt2", "c_attn[q,v]", False),
        ("llama", "all-linear", False),
        ("llama", "all-linear", True),
        ("llama", "q_proj", False),
    ],
)
def test_a_model_with_its_adapter_answers_as_before(kind: str, targets: str, dora: bool) -> None:
    model = adapted(kind, targets, dora=dora)
    expected, embeddings = logits(model), model.get_input_embeddings().weight.clone()
    prepack(model)
    assert not lora_layers(model)
    assert not [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    assert_near(logits(model), expected, 1e-5)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_activated_adapter_stays_beside_the_weights(kind: str) -> None:
    model = tiny_model(kind)
    adapt(model, LoraSettings(rank=3, alpha=6.0, activated=True), invocation=[7])
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.3, generator=generator)
    acts = [torch.arange(IDS.shape[1])[None] >= start for start in (0, 9)]

    def both() -> list[Tensor]:
        found = [logits(model)]
        for tokens in acts:
            with acting_on(tokens):
                found.append(logits(model))
        return found

    expected = both()
    prepack(model)
    assert packed_layers(model)
    for got, wanted in zip(both(), expected, strict=True):
        assert_near(got, wanted, 1e-5)
    assert not torch.allclose(expected[2], expected[1], atol=0.01)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_bf16_model_keeps_its_adapter_beside_the_weights(
    dora: bool, kind: str, dtype: torch.dtype
) -> None:
    model = adapted(kind, "all-linear", str(dtype).removeprefix("torch."), dora=dora)
    expected = logits(model)
    prepack(model)
    assert packed_layers(model)
    assert_near(logits(model), expected, 0.02)


@pytest.mark.parametrize(
    ("kind", "targets"), [("gpt2", "all-linear"), ("gpt2", "c_attn[q,v]"), ("llama", "all-linear")]
)
@torch.no_grad()
def test_an_adapter_beside_the_weights_is_the_layer_in_eval_mode(kind: str, targets: str) -> None:
    for layer in lora_layers(adapted(kind, targets)).values():
        beside = prepacked._Adapted(layer, prepacked._laid_out(layer.base, layer.base.weight))
        for shape in ((2, 5), (1, 1), (0,)):
            x = torch.randn(*shape, layer.in_features)
            assert_near(beside(x), layer(x), 1e-5)


@pytest.mark.parametrize("kind", [*MODELS, "bloom"])
def test_any_model_answers_as_before(kind: str) -> None:
    """Whether it can be prepacked or not: some look at weights of layers themselves."""
    model = bloom() if kind == "bloom" else model_of(kind)
    expected = logits(copy.deepcopy(model))
    prepack(model)
    assert_near(logits(model), expected, 1e-5)
    choose_runner(model, 200)


def test_a_model_that_reads_the_weights_of_its_layers_keeps_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_of("mamba")
    with caplog.at_level(logging.DEBUG, "loraqa"):
        prepack(model)
    assert not packed_layers(model)
    assert caplog.messages[-1] == (
        "The acceleration prepacked-weights is not used, because the model reads the weights of "
        "its linear layers itself."
    )


def test_where_there_are_no_such_products_the_model_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(prepacked, "PrepackedLinear", fail)
    model = adapted("gpt2", "all-linear")
    names, expected = list(lora_layers(model)), logits(model)
    with caplog.at_level(logging.INFO, "loraqa"):
        prepack(model)
    assert caplog.messages == [
        "The acceleration prepacked-weights is not used, because it fails here "
        "(RuntimeError: no such operator)."
    ]
    assert list(lora_layers(model)) == names
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_wrong_products_are_not_used(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PrepackedLinear.forward

    def wrong(self: PrepackedLinear, x: Tensor) -> Tensor:
        return forward(self, x) * (1.1 if len(x) == rows else 1)

    monkeypatch.setattr(PrepackedLinear, "forward", wrong)
    model = adapted("gpt2", "all-linear")
    prepack(model)
    assert not packed_layers(model)


def test_layers_before_a_wrong_one_stay_prepacked() -> None:
    model = adapted("gpt2", "all-linear")
    runner = choose_runner(model, 200)
    model.transformer.h[1].mlp.c_fc.lora_A.data.fill_(torch.nan)
    fastest(runner, ["answering"], EVERYTHING_ELSE)
    assert next(iter(lora_layers(model))) == "transformer.h.1.mlp.c_fc"
    assert len(packed_layers(model)) == 6


def test_in_fp64_nothing_changes() -> None:
    model = adapted("gpt2", "all-linear", "float64")
    prepack(model)
    assert lora_layers(model)
    assert not packed_layers(model)


def test_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    before = torch.get_rng_state()
    prepack(adapted("gpt2", "all-linear"))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_saved_is_not_saved_in_part(tmp_path: Path) -> None:
    model = adapted("gpt2", "all-linear")
    prepack(model)
    with pytest.raises((RuntimeError, NotImplementedError, ValueError)):
        model.save_pretrained(tmp_path)
