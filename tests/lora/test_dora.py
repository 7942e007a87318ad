"""DoRA computes, trains and is saved as in PEFT."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from tests.conftest import assert_near

from loraqa.errors import InputError
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import load_adapter, save_adapter
from loraqa.lora.dora import DoraLinear
from loraqa.lora.layer import lora_layers
from loraqa.lora.merge import merge, merge_and_unload, unmerge
from loraqa.lora.settings import ADAPTER_CONFIG, LoraSettings
from loraqa.lora.updates import updates

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:fan_in_fan_out:UserWarning"
)

FAMILIES = ["gpt2", "llama"]


def chosen(targets="all-linear", **settings):
    return LoraSettings(**{"rank": 3, "alpha": 5, **settings}, dora=True, target_modules=targets)


@pytest.fixture
def adapted(tiny_model):
    """Return a function that makes a tiny model with DoRA."""

    def make(family="gpt2", dtype=torch.float64, **settings):
        model = tiny_model(family, dtype)
        adapt(model, chosen(**settings))
        return model

    return make


@pytest.fixture
def by_peft(tiny_model, stir):
    """Return a function that makes a tiny model with PEFT's DoRA, away from its start."""

    def make(family, **settings):
        config = LoraConfig(
            **{"r": 3, "lora_alpha": 5, "target_modules": "all-linear", **settings}, use_dora=True
        )
        model = get_peft_model(tiny_model(family), config)
        stir(model)
        return model

    return make


def magnitudes(model):
    return {
        name.removeprefix("base_model.model.").partition(".lora_magnitude")[0]: parameter
        for name, parameter in model.named_parameters()
        if "lora_magnitude" in name
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_as_the_base(adapted, tiny_model, logits, family):
    model, base = adapted(family), tiny_model(family)
    assert_near(logits(model), logits(base), 1e-12)
    for name, layer in lora_layers(model).items():
        weight = base.get_submodule(name).weight
        rows = weight.t() if family == "gpt2" else weight
        assert_near(layer.lora_magnitude, rows.norm(dim=1), 1e-12)


@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_gradients_and_files_are_pefts(
    by_peft, tiny_model, input_ids, logits, tmp_path, family, stabilised
):
    theirs = by_peft(family, use_rslora=stabilised, rank_pattern={"mlp.*": 2})
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tiny_model(family)
    load_adapter(ours, tmp_path / "theirs")
    assert {type(layer) for layer in lora_layers(ours).values()} == {DoraLinear}
    assert_near(logits(ours), logits(theirs), 1e-10)
    assert not torch.allclose(logits(ours), logits(tiny_model(family)), atol=0.01)

    for model in (ours, theirs):
        for parameter in model.parameters():
            parameter.grad = None
        model(input_ids=input_ids, labels=input_ids).loss.backward()
    lengths = magnitudes(theirs)
    for name, layer in lora_layers(ours).items():
        peft_layer = theirs.get_submodule(f"base_model.model.{name}")
        assert_near(layer.lora_A.grad, peft_layer.lora_A["default"].weight.grad, 1e-10)
        assert_near(layer.lora_B.grad, peft_layer.lora_B["default"].weight.grad, 1e-10)
        assert_near(layer.lora_magnitude.grad, lengths[name].grad, 1e-10)

    save_adapter(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / ADAPTER_CONFIG).read_text())["use_dora"] is True
    again = PeftModel.from_pretrained(tiny_model(family), tmp_path / "ours")
    assert_near(logits(again), logits(ours), 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lengths_of_rows_are_those_of_the_summed_weight(adapted, stir, family):
    model = adapted(family)
    stir(model)
    for layer in lora_layers(model).values():
        summed = layer.frozen_weight + layer.scaling * layer.lora_B @ layer.lora_A
        assert_near(layer.row_lengths(), summed.norm(dim=1), 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_of_a_length_show_in_bfloat16(tiny_model, family):
    model = tiny_model(family, torch.bfloat16)
    adapt(model, chosen())
    layer = next(iter(lora_layers(model).values()))
    x = torch.randn(2000, layer.in_features, generator=torch.Generator().manual_seed(1))
    before = layer(x.bfloat16()).double()
    # Between 1.0078 and 1.0156 in bfloat16.
    layer.lora_magnitude.data *= 1.0117
    changes = layer(x.bfloat16()).double() - before
    bias = 0 if layer.base.bias is None else layer.base.bias.double()
    slope = (changes * (before - bias)).sum() / (before - bias).square().sum()
    assert slope.item() == pytest.approx(0.0117, rel=0.1)


def test_a_row_of_zeros_stays_zero(logits, tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[:, 3] = 0
    before = logits(model)
    adapt(model, chosen())
    assert_near(logits(model), before, 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_has_the_logits(adapted, stir, input_ids, logits, family):
    model = adapted(family)
    stir(model)
    answers = logits(model)
    assert merge(model, input_ids) < 1e-10
    assert_near(logits(model), answers, 1e-10)
    unmerge(model)
    assert torch.equal(logits(model), answers)
    merge_and_unload(model, input_ids)
    assert not lora_layers(model)
    assert_near(logits(model), answers, 1e-10)


def test_what_dora_cannot_do_is_refused(adapted, tiny_model):
    with pytest.raises(ValidationError, match="dora=true and initialisation=pissa exclude"):
        chosen(initialisation="pissa")
    model = tiny_model()
    with pytest.raises(
        InputError,
        match=r"only whole layers, but .* of transformer\.h\.0\.attn\.c_attn;",
    ):
        adapt(model, chosen("c_attn[q,v]"))
    assert not lora_layers(model)
    with pytest.raises(InputError, match=r"was trained with DoRA, whose update is not of low rank"):
        updates(adapted())
