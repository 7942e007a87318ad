"""PiSSA starts, trains and is saved as in PEFT, and goes on to the bit."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.conftest import assert_near

from loraqa.analysis.low_rank import svd_of_product
from loraqa.errors import InputError
from loraqa.lora.adapt import adapt, resume_pissa
from loraqa.lora.adapter import load_adapter, save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.merge import merge_and_unload, unload
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS, LoraSettings
from loraqa.lora.updates import updates

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:fan_in_fan_out:UserWarning",
    "ignore:PiSSA:UserWarning",
)

FAMILIES = ["gpt2", "llama"]
# In fp32, directions with similar singular values are known to fewer digits than these values.
NEAR = 1e-4


@pytest.fixture
def adapted(tiny_model):
    """Return a function that makes a tiny model that starts by PiSSA."""

    def make(family="gpt2", targets="all-linear", dtype=torch.float32, **settings):
        model = tiny_model(family, dtype)
        adapt(model, chosen(targets, **settings))
        return model

    return make


def chosen(targets="all-linear", **settings):
    return LoraSettings(
        **{"rank": 3, "alpha": 5, **settings}, initialisation="pissa", target_modules=targets
    )


@pytest.fixture
def by_peft(tiny_model):
    """Return a function that makes a tiny model that starts by PEFT's PiSSA."""

    def make(family):
        config = LoraConfig(
            r=3, lora_alpha=5, target_modules="all-linear", init_lora_weights="pissa"
        )
        return get_peft_model(tiny_model(family, torch.float32), config)

    return make


def trained(model, input_ids):
    """Return the model after some steps of AdamW."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_pefts_up_to_the_sign_of_each_direction(
    adapted, by_peft, tiny_model, logits, family
):
    ours, theirs = adapted(family), by_peft(family)
    for name, layer in lora_layers(ours).items():
        peft_layer = theirs.get_submodule(f"base_model.model.{name}")
        a, b = (getattr(peft_layer, f"lora_{m}")["default"].weight for m in "AB")
        signs = (layer.lora_A * a).sum(1).sign()
        assert_near(layer.lora_A, signs[:, None] * a, NEAR)
        assert_near(layer.lora_B, signs * b, NEAR)
        assert_near(layer.base.weight, peft_layer.base_layer.weight, NEAR)
    assert_near(logits(ours), logits(tiny_model(family, torch.float32)), 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_the_saved_adapter_are_pefts(
    adapted, by_peft, tiny_model, logits, input_ids, tmp_path, family
):
    ours, theirs = trained(adapted(family), input_ids), by_peft(family)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    trained(theirs, input_ids)
    base = tiny_model(family, torch.float32)
    change = logits(ours) - logits(base)
    assert_near(logits(theirs) - logits(base), change, 1e-3)
    save_adapter(ours, tmp_path / "ours")
    theirs.save_pretrained(
        tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    for folder in ("ours", "theirs"):
        plain = PeftModel.from_pretrained(tiny_model(family, torch.float32), tmp_path / folder)
        assert_near(logits(plain) - logits(base), change, 1e-3)
        config = json.loads((tmp_path / folder / ADAPTER_CONFIG).read_text())
        assert [config[key] for key in ("r", "lora_alpha", "init_lora_weights")] == [6, 10, True]


@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize(
    ("family", "targets", "settings"),
    [
        ("gpt2", "all-linear", {"rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_fc": 7}}),
        ("gpt2", ["c_attn[q,v]", "mlp"], {"alpha_pattern": {"c_attn": 7}}),
        ("gpt2", "attn.c_proj", {"dropout": 0.25}),
        ("llama", "all-linear", {}),
    ],
    ids=str,
)
def test_the_adapter_alone_gives_the_logits_on_the_base(
    adapted, stir, tiny_model, logits, tmp_path, family, targets, settings, stabilised
):
    model = adapted(family, targets, torch.float64, rank_stabilised=stabilised, **settings)
    base, again = tiny_model(family), tiny_model(family)
    assert_near(logits(model), logits(base), 1e-10)
    stir(model)
    assert not torch.allclose(logits(model), logits(base), atol=0.01)
    save_adapter(model, tmp_path)
    load_adapter(again, tmp_path)
    assert_near(logits(again), logits(model), 1e-10)
    assert_near(logits(PeftModel.from_pretrained(base, tmp_path)), logits(model), 1e-10)


def test_a_part_starts_with_the_directions_of_its_own_rows(adapted, tiny_model):
    name = "transformer.h.0.attn.c_attn"
    layer = adapted(targets="c_attn[q,v]", dtype=torch.float64).get_submodule(name)
    weight, rest = tiny_model().get_submodule(name).weight.t(), layer.frozen_weight
    for part, a, b in layer.blocks():
        values = torch.linalg.svdvals(weight[part.slice])
        assert_near(layer.scaling * svd_of_product(b, a).values, values[:3], 1e-12)
        assert_near(torch.linalg.svdvals(rest[part.slice])[:-3], values[3:], 1e-12)
    assert torch.equal(rest[16:32], weight[16:32])


@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize(
    ("family", "targets"), [("gpt2", "all-linear"), ("gpt2", "c_attn[q,v]"), ("llama", "mlp")]
)
def test_it_goes_on_to_the_bit(
    adapted, tiny_model, input_ids, logits, tmp_path, family, targets, stabilised
):
    # √2 · 7 / √2 is not 7 in floating point.
    settings = {"alpha": 7, "rank_stabilised": stabilised, "dropout": 0.25}
    model = trained(adapted(family, targets, **settings), input_ids)
    save_adapter(model, tmp_path)
    again = tiny_model(family, torch.float32)
    load_adapter(again, tmp_path)
    resume_pissa(again, chosen(targets, **settings))
    before, after = (dict(each.named_parameters()) for each in (model, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.requires_grad for p in before.values()] == [p.requires_grad for p in after.values()]
    assert torch.equal(logits(model), logits(again))
    save_adapter(again, tmp_path / "again")
    saved, resaved = (load_file(folder / TENSORS) for folder in (tmp_path, tmp_path / "again"))
    assert saved.keys() == resaved.keys()
    assert all(torch.equal(saved[name], resaved[name]) for name in saved)


def test_a_rank_above_that_of_a_matrix_is_filled_with_zeros(adapted, tiny_model, logits):
    model = adapted("llama", rank=10)
    assert_near(logits(model), logits(tiny_model("llama", torch.float32)), 1e-5)
    layer = model.get_submodule("model.layers.0.self_attn.k_proj")
    assert not layer.lora_A[8:].any()
    assert not layer.lora_B[:, 8:].any()
    assert layer.base.weight.abs().max() < 1e-5


def test_the_merged_model_has_the_logits(adapted, input_ids, logits):
    model = trained(adapted(), input_ids)
    answers = logits(model)
    merge_and_unload(model, input_ids)
    assert not lora_layers(model)
    assert_near(logits(model), answers, 1e-5)


def test_weights_that_another_model_shares_stay(adapted, tiny_model, logits):
    model, other = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.float32)
    for name in lora_layers(adapted()):
        other.get_submodule(name).weight = model.get_submodule(name).weight
    before = logits(other)
    adapt(model, chosen())
    assert torch.equal(logits(other), before)


@pytest.mark.parametrize("use", [unload, updates])
def test_what_needs_the_whole_weights_is_refused(adapted, use):
    with pytest.raises(InputError) as caught:
        use(adapted())
    assert str(caught.value) == (
        "The weights of this model lack what PiSSA took out of them; save the adapter, and load it "
        "into the base model."
    )


def spoiled(model):
    with torch.no_grad():
        model.get_submodule("transformer.h.1.mlp.c_fc").weight[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("dtype", "change", "words"),
    [
        (torch.bfloat16, lambda model: model, r"to torch.bfloat16; set model.dtype=float32\.$"),
        (torch.float32, spoiled, r"weight of transformer.h.1.mlp.c_fc holds a NaN .* another base"),
    ],
)
def test_weights_that_cannot_be_split_are_refused(tiny_model, dtype, change, words):
    model = change(tiny_model(dtype=dtype))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(InputError, match=words):
        adapt(model, chosen())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)
