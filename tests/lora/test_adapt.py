"""`adapt`: trained parameters, initial logits, shared base weights, and settings."""

import pytest
import torch
from pydantic import ValidationError
from tests.conftest import assert_near
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from loraqa.errors import InputError
from loraqa.lora.adapt import adapt, parameter_counts
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.lora.targets import linear_layers

TARGETS = ["all-linear", "attention", "mlp"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("targets", TARGETS)
def test_initial_logits_equal_the_base_models(tiny_model, logits, family, targets):
    model = tiny_model(family, torch.float32)
    before = logits(model)
    adapt(model, LoraSettings(target_modules=targets))
    assert not any(layer.lora_B.any() for layer in lora_layers(model).values())
    assert_near(logits(model), before, 1e-6)


def test_only_a_and_b_are_trained(tiny_model):
    model = tiny_model()
    adapt(model, LoraSettings(rank=2, target_modules="c_attn"))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [
        f"transformer.h.{block}.attn.c_attn.lora_{matrix}" for block in (0, 1) for matrix in "AB"
    ]


def gpt2_124m(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("targets", "rank", "trained"),
    [
        ("c_attn", 8, 294_912),
        ("c_attn[q,v]", 8, 12 * 2 * 8 * (768 + 768)),
        ("all-linear", 16, 12 * 16 * (768 * 4 + 768 * 2 + 768 * 5 + 768 * 5)),
    ],
)
def test_counts_on_the_124m_shape(targets, rank, trained):
    model = gpt2_124m(GPT2Config())
    adapt(model, LoraSettings(rank=rank, target_modules=targets))
    counts = parameter_counts(model)
    assert (counts.trainable, counts.total) == (trained, 124_439_808 + trained)


def test_counts_on_gpt2s_configuration_as_text(shared):
    model = gpt2_124m(AutoConfig.from_pretrained(shared / "gpt2"))
    adapt(model, LoraSettings(rank=8, target_modules="c_attn"))
    shown = "294,912 of 124,734,720 parameters are trained (0.24%)"
    assert str(parameter_counts(model)) == shown


def adapter_of(model):
    return {name: p for name, p in model.state_dict().items() if "lora_" in name}


def test_the_same_seed_draws_the_same_adapter(tiny_model):
    drawn = []
    for seed in (1, 1, 2):
        torch.rand(3)
        model = tiny_model()
        adapt(model, LoraSettings(), seed=seed)
        drawn.append(adapter_of(model))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not any(torch.equal(drawn[0][n], drawn[2][n]) for n in drawn[0] if n.endswith("A"))


def test_the_same_seed_draws_the_same_adapter_for_every_base_dtype(tiny_model):
    fp32, bf16 = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.bfloat16)
    for model in (fp32, bf16):
        adapt(model, LoraSettings(), seed=1)
    for ours, theirs in zip(adapter_of(fp32).values(), adapter_of(bf16).values(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_the_base_weights_are_not_copied(tiny_model, base_state):
    model = tiny_model()
    before = {name: p.data_ptr() for name, p in model.state_dict().items()}
    adapt(model, LoraSettings())
    assert {name: p.data_ptr() for name, p in base_state(model).items()} == before


@pytest.mark.parametrize("training", [True, False])
def test_adapted_layers_take_over_the_models_mode(tiny_model, training):
    model = tiny_model().train(training)
    adapt(model, LoraSettings(dropout=0.5))
    assert {layer.training for layer in lora_layers(model).values()} == {training}


@pytest.mark.parametrize("stabilised", [False, True])
def test_scaling(tiny_model, stabilised):
    model = tiny_model()
    adapt(model, LoraSettings(rank=4, alpha=12, rank_stabilised=stabilised))
    assert {layer.scaling for layer in lora_layers(model).values()} == {6 if stabilised else 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": 2.5},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"target_modules": []},
        {"ranks": 8},
        {"rank_pattern": {"c_attn": 0}},
        {"rank_pattern": ["c_attn"]},
        {"alpha_pattern": {"c_attn": 0}},
        {"alpha_pattern": {"c_attn": float("inf")}},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        LoraSettings(**wrong)


def test_settings_round_trip_through_json():
    settings = LoraSettings(rank=4, target_modules="c_attn[q,v]", alpha_pattern={"c_attn": 2})
    assert LoraSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_rank_above_every_matrix_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"^lora\.rank or .* is 5,000, but no ada.* 16; lower it"):
        adapt(model, LoraSettings(rank=5000, target_modules="attention"))
    assert not lora_layers(model)


def test_a_pattern_with_a_rank_above_its_matrices_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"is 17, but no adapted matrix .* above 16; lower it"):
        adapt(model, LoraSettings(rank_pattern={"down_proj": 17}))
    assert not lora_layers(model)
    adapt(model, LoraSettings(rank=5000, rank_pattern={".*": 2}))


def test_the_first_pattern_that_matches_counts(tiny_model):
    model = tiny_model()
    patterns = {"h.0.mlp.c_fc": 2, r"mlp.c_\w+": 3, "c_proj": 4}
    adapt(model, LoraSettings(rank=5, alpha=6, rank_pattern=patterns, alpha_pattern={"h.1.*": 7}))
    found = {name[14:]: (layer.rank, layer.alpha) for name, layer in lora_layers(model).items()}
    assert found == {
        "0.attn.c_attn": (5, 6),
        "0.attn.c_proj": (4, 6),
        "0.mlp.c_fc": (2, 6),
        "0.mlp.c_proj": (3, 6),
        "1.attn.c_attn": (5, 7),
        "1.attn.c_proj": (4, 7),
        "1.mlp.c_fc": (3, 7),
        "1.mlp.c_proj": (3, 7),
    }


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        # It is a layer, but not adapted.
        ("c_fc", 'No adapted layer is called "c_fc"; lora.{} can name c_attn, c_proj.'),
        ("attn", 'No adapted layer is called "attn" (did you mean c_attn?); lora.{} can name '),
        ("c_attn[q]", 'No adapted layer is called "c_attn[q]" (did you mean c_attn?); lora.{} can'),
        ("(", '"(" in lora.{} is not a valid regular expression (missing ), '),
    ],
)
def test_a_pattern_for_no_adapted_layer_is_refused(tiny_model, setting, pattern, message):
    model = tiny_model()
    chosen = {setting: {"c_attn": 2, pattern: 3}}
    with pytest.raises(InputError) as caught:
        adapt(model, LoraSettings(target_modules=["c_attn[q,v]", "attn.c_proj"], **chosen))
    assert str(caught.value).startswith(message.format(setting))
    assert not lora_layers(model)


def test_a_rank_above_some_matrices_is_said(tiny_model, caplog):
    sizes = {min(layer.weight.shape) for layer in linear_layers(tiny_model("llama")).values()}
    adapt(tiny_model("llama"), LoraSettings(rank=min(sizes) + 1))
    assert [line for line in caplog.messages if "adds weights but nothing to learn" in line]
    caplog.clear()
    adapt(tiny_model("llama"), LoraSettings(rank=min(sizes)))
    assert not caplog.messages
