"""Merging the update, undoing the merge, and saving a plain transformers model."""

import pytest
import torch
from peft import PeftModel
from tests.conftest import assert_near
from transformers import AutoModelForCausalLM

from loraqa.errors import LoraqaError
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import save_adapter
from loraqa.lora.layer import LoraLinear, lora_layers
from loraqa.lora.merge import merge, merge_and_unload, unload, unmerge
from loraqa.lora.settings import LoraSettings

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:fan_in_fan_out:UserWarning"
)

FAMILIES = [("gpt2", "all-linear"), ("gpt2", "c_attn[q,v]"), ("llama", "mlp"), ("qwen2", "q_proj")]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture
def adapted(tiny_model, stir):
    def make(family="gpt2", targets="all-linear", dtype=torch.float32, tied=True):
        model = tiny_model(family, dtype, tied)
        adapt(model, LoraSettings(rank=3, alpha=2, target_modules=targets))
        stir(model)
        return model

    return make


@pytest.mark.parametrize(("family", "targets"), FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merging_changes_logits_by_rounding_only_and_returns_the_change(
    adapted, logits, input_ids, family, targets, dtype
):
    model = adapted(family, targets, dtype)
    apart = logits(model)
    change = merge(model, input_ids)
    together = logits(model)
    assert change == (together.double() - apart.double()).abs().max().item()
    assert change <= 50 * torch.finfo(dtype).eps * apart.abs().max().item()


@pytest.mark.parametrize(("family", "targets"), FAMILIES)
def test_merged_weights_equal_pefts(adapted, tiny_model, input_ids, tmp_path, family, targets):
    model = adapted(family, targets, torch.float64)
    save_adapter(model, tmp_path)
    merge_and_unload(model, input_ids)
    theirs = PeftModel.from_pretrained(tiny_model(family), tmp_path).merge_and_unload().state_dict()
    ours = model.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-13, atol=1e-13)


def test_a_bf16_weight_is_summed_in_fp32_and_rounded_once(adapted, input_ids):
    model = adapted(dtype=torch.bfloat16)
    (layer, *_) = lora_layers(model).values()
    weight = layer.base.weight.double()
    update = 2 / 3 * (layer.lora_B.double() @ layer.lora_A.double()).t()
    exact = weight + update
    merge(model, input_ids)
    # Half a unit in the last of bf16's eight bits, and a little for fp32.
    in_fp32 = 2**-20 * (weight.abs() + update.abs())
    assert ((layer.merged_weight - exact).abs() <= 2**-8 * exact.abs() + in_fp32).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unmerging_restores_every_bit(adapted, logits, input_ids, base_state, dtype):
    model = adapted(dtype=dtype)
    weights = {name: (p.data_ptr(), p.clone()) for name, p in base_state(model).items()}
    answers = logits(model)
    merge(model, input_ids)
    assert not torch.equal(logits(model), answers)
    unmerge(model)
    assert torch.equal(logits(model), answers)
    for name, weight in base_state(model).items():
        assert weight.data_ptr() == weights[name][0]
        assert torch.equal(weight, weights[name][1])


def test_merging_again_uses_the_current_update(adapted, logits, input_ids):
    model = adapted()
    merge(model, input_ids)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B *= 2
    merge(model, input_ids)
    merged = logits(model)
    unmerge(model)
    assert_near(merged, logits(model), 1e-5)


def test_merging_ignores_dropout(adapted, logits, input_ids):
    model = adapted()
    answers = logits(model)
    for layer in lora_layers(model).values():
        layer.dropout = 0.5
    merge(model.train(), input_ids)
    assert not model.training
    assert_near(logits(model), answers, 1e-5)


def test_a_wrong_merge_raises_and_is_undone(adapted, logits, input_ids, monkeypatch):
    model = adapted()
    answers = logits(model)
    right = LoraLinear.summed_weight
    monkeypatch.setattr(LoraLinear, "summed_weight", lambda layer: right(layer) * 1.01)
    with pytest.raises(LoraqaError, match="Merging changed a logit by .*float32"):
        merge(model, input_ids)
    assert torch.equal(logits(model), answers)


def test_a_merge_that_yields_nan_raises(adapted, input_ids):
    model = adapted(dtype=torch.float16)
    (layer, *_) = lora_layers(model).values()
    with torch.no_grad():
        layer.lora_B[0, 0], layer.lora_A[0, 0] = 6e4, 6e4  # beyond fp16 once multiplied
    with pytest.raises(LoraqaError, match="changed a logit by nan"):
        merge(model, input_ids)


@pytest.mark.parametrize(("family", "targets"), FAMILIES)
def test_unloading_restores_the_base(adapted, tiny_model, logits, family, targets):
    model, plain = adapted(family, targets), tiny_model(family, torch.float32)
    unload(model)
    assert not lora_layers(model)
    assert torch.equal(logits(model), logits(plain))
    assert [*model.state_dict()] == [*plain.state_dict()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("family", "targets"), FAMILIES)
def test_the_merged_model_is_a_plain_transformers_folder(
    adapted, logits, input_ids, tmp_path, family, targets, tied, dtype
):
    model = adapted(family, targets, dtype, tied)
    answers = logits(model)
    change = merge_and_unload(model, input_ids)
    # The change was measured with layers that may call other kernels than transformers' layers do.
    rounding = 8 * torch.finfo(dtype).eps * answers.abs().max().item()
    assert (logits(model) - answers).abs().max().item() <= change + rounding
    model.save_pretrained(tmp_path)
    check_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype), model)


def check_same_weights(loaded, model):
    assert type(loaded) is type(model)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_an_untied_head_is_merged_too(adapted, input_ids, tmp_path):
    model = adapted(targets=["lm_head", "c_attn"], tied=False)
    embedding = model.get_input_embeddings().weight.clone()
    merge_and_unload(model, input_ids)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    check_same_weights(loaded, model)
    assert torch.equal(loaded.get_input_embeddings().weight, embedding)


def test_merging_does_not_touch_weights_that_another_model_shares(
    adapted, tiny_model, logits, input_ids
):
    model, other = adapted(), tiny_model(dtype=torch.float32)
    for name, layer in lora_layers(model).items():
        other.get_submodule(name).weight = layer.base.weight
    before = logits(other)
    merge_and_unload(model, input_ids)
    assert torch.equal(logits(other), before)
