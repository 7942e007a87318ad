"""Projections that share an input compute what each computes alone."""

import logging
from typing import Any

import pytest
import torch
from tests.conftest import assert_near, tiny_model
from tests.train.conftest import settings
from torch import Tensor

from loraqa.lora.adapt import adapt
from loraqa.lora.layer import LoraLinear, lora_layers
from loraqa.model.runner import TreeRunner
from loraqa.speed.cpu import shared
from loraqa.speed.trial import UnusableError, fastest

IDS = torch.arange(20)[None]


def adapted(kind: str, dtype: str = "float32", b: float = 0.1, *changes: str) -> Any:
    model = tiny_model(kind, dtype)
    adapt(model, settings("lora.dropout=0", *changes).lora)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=b, generator=generator)
    return model


def with_gradients(model: Any) -> list[Tensor]:
    model.set_attn_implementation("eager")
    logits = model(IDS).logits
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(logits.float().square().sum(), weights)
    return [logits, torch.cat([gradient.flatten() for gradient in gradients])]


def sharing(model: Any) -> list[str]:
    return [name for name, layer in lora_layers(model).items() if "forward" in vars(layer)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
# Qwen 2's queries, keys and values have biases.
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_it_is_each_projection_alone(kind: str, dtype: str, tolerance: float) -> None:
    plain, together = adapted(kind, dtype), adapted(kind, dtype)
    for model in (plain, together):
        for name, weight in model.named_parameters():
            if name.endswith("base.bias"):
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(2))
    shared.wrap(TreeRunner(together))
    ends = [name.rpartition(".")[2] for name in sharing(together)]
    assert ends == 2 * ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    for got, wanted in zip(with_gradients(together), with_gradients(plain), strict=True):
        assert_near(got, wanted, tolerance)


def test_layers_of_dora_compute_alone() -> None:
    with pytest.raises(UnusableError, match="no adapted layers share their input"):
        shared.wrap(TreeRunner(adapted("llama", "float32", 0.1, "lora.dora=true")))


def test_it_works_before_the_first_step_when_b_is_0() -> None:
    _, names = fastest(TreeRunner(adapted("llama", "bfloat16", 0)), ["training"])
    assert "shared-inputs" in names


def test_the_first_products_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama")
    shared.wrap(TreeRunner(model))
    widths: list[int] = []
    product = shared.scaled_product

    def noted(scale: float, left: Tensor, right: Tensor) -> Tensor:
        widths.append(right.shape[1])
        return product(scale, left, right)

    monkeypatch.setattr(shared, "scaled_product", noted)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model(IDS)
    rank = next(iter(lora_layers(model).values())).rank
    assert widths == 2 * [3 * rank, 2 * rank]


def test_layers_may_be_called_alone_again_or_merged() -> None:
    model = adapted("llama")
    shared.wrap(TreeRunner(model))
    attention = model.model.layers[0].self_attn
    x, other = torch.linspace(-1, 1, 64).view(2, 32), torch.linspace(1, 2, 64).view(2, 32)
    for layer, given in (
        *((attention.v_proj, x), (attention.v_proj, x), (attention.q_proj, other)),
        *((attention.k_proj, x), (attention.q_proj, x)),
    ):
        assert_near(layer(given), LoraLinear.forward(layer, given), 1e-6)
    attention.k_proj.merge()
    assert torch.equal(attention.k_proj(x), LoraLinear.forward(attention.k_proj, x))
    assert_near(attention.q_proj(x), LoraLinear.forward(attention.q_proj, x), 1e-6)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", []),
        ("llama", ["lora.target_modules=[q_proj,o_proj]"]),
        ("llama", ["lora.dropout=0.1"]),
    ],
)
def test_layers_without_company_stay(
    kind: str, changes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(kind, "float32", 0.1, *changes)
    with caplog.at_level(logging.INFO, "loraqa"):
        _, names = fastest(TreeRunner(model), ["training"])
    assert "shared-inputs" not in names
    assert not sharing(model)


def test_layers_of_another_rank_or_scale_stay() -> None:
    changes = ["lora.rank_pattern={v_proj: 2}", "lora.alpha_pattern={up_proj: 7}"]
    plain, together = (adapted("llama", "float32", 0.1, *changes) for _ in range(2))
    shared.wrap(TreeRunner(together))
    assert [name.rpartition(".")[2] for name in sharing(together)] == 2 * ["q_proj", "k_proj"]
    for got, wanted in zip(with_gradients(together), with_gradients(plain), strict=True):
        assert_near(got, wanted, 1e-5)


def test_it_is_for_training() -> None:
    runner = TreeRunner(adapted("llama"))
    assert shared.applies(runner, frozenset({"training"}))
    assert not shared.applies(runner, frozenset({"answering"}))
