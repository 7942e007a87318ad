"""Adapter files: PEFT reads ours, we read PEFT's, and broken files raise clear errors."""

import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.conftest import full_disk

from loraqa.errors import InputError
from loraqa.files import write_tensors
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import load_adapter, save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS, LoraSettings

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:fan_in_fan_out:UserWarning"
)

GPT2 = ["all-linear", "attention", "mlp", "c_attn", "attn.c_proj", r"h.1.\w+.c_proj"]
IN_PARTS = ["c_attn[q,v]", "c_attn[k]", ["c_attn[q,v]", "mlp"], ["h.0.attn.c_attn[q,k,v]", "c_fc"]]
LLAMA = ["all-linear", "attention", "mlp", "q_proj", "[qv]_proj", "layers.1.mlp.(up|down)_proj"]
CASES = [
    *(("gpt2", targets) for targets in [*GPT2, *IN_PARTS]),
    *((family, targets) for family in ("llama", "qwen2") for targets in LLAMA),
]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def adapted(tiny_model, stir):
    """Return a function that makes a tiny model with an adapter that changes its logits."""

    def make(family="gpt2", targets="all-linear", **settings):
        model = tiny_model(family)
        adapt(model, LoraSettings(rank=3, alpha=5, target_modules=targets, **settings))
        stir(model)
        return model

    return make


@pytest.fixture
def as_peft(tiny_model):
    """Return a function that loads an adapter with PEFT into a tiny model; warnings fail."""

    def load(folder, family="gpt2"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return PeftModel.from_pretrained(tiny_model(family), folder)

    return load


@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize(("family", "targets"), CASES, ids=str)
def test_peft_reads_ours(
    adapted, as_peft, logits, tiny_model, tmp_path, family, targets, stabilised
):
    model = adapted(family, targets, rank_stabilised=stabilised)
    assert not torch.allclose(logits(model), logits(tiny_model(family)), atol=0.01)
    save_adapter(model, tmp_path)
    theirs = as_peft(tmp_path, family)
    torch.testing.assert_close(logits(theirs), logits(model), **EXACT)


@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize(("family", "targets"), CASES, ids=str)
def test_we_read_ours_to_the_bit(
    adapted, logits, tiny_model, tmp_path, family, targets, stabilised
):
    model = adapted(family, targets, rank_stabilised=stabilised, dropout=0.25)
    again = tiny_model(family)
    save_adapter(model, tmp_path)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    settings = ("rank", "alpha", "rank_stabilised", "parts", "dropout")
    for name, layer in lora_layers(model).items():
        other = lora_layers(again)[name]
        assert [getattr(other, s) for s in settings] == [getattr(layer, s) for s in settings]
        assert torch.equal(other.lora_A, layer.lora_A)
        assert torch.equal(other.lora_B, layer.lora_B)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt2", {"target_modules": ["c_attn"]}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["attn.c_proj", "c_fc"], "lora_dropout": 0.2}),
        ("gpt2", {"target_modules": r".*\.h\.1\..*c_\w+"}),
        ("gpt2", {"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
        ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": 1}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [0]}),
        (
            "gpt2",
            {
                "target_modules": ["c_attn", "transformer.h.0.mlp.c_fc"],
                "layers_to_transform": [1],
                "layers_pattern": "h",
            },
        ),
        (
            "llama",
            {
                "target_modules": ["q_proj", "up_proj"],
                "layers_to_transform": [1],
                "layers_pattern": ["blocks", "layers"],
            },
        ),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": []}),
        ("llama", {"target_modules": "all-linear", "exclude_modules": ["mlp.down_proj", "k_proj"]}),
        ("gpt2", {"target_modules": r".*c_\w+", "exclude_modules": r".*\.0\..*"}),
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama", {"target_modules": r".*\.self_attn\.[qk]_proj"}),
        ("qwen2", {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 5}}),
        (
            "qwen2",
            {
                "target_modules": ["q_proj", "up_proj"],
                "rank_pattern": {r"layers\.\d\.mlp\.up_proj": 2, "up_proj": 7},
                "alpha_pattern": {"layers.0.self_attn.q_proj": 11, "q_proj": 2.5},
            },
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "rslora"])
def test_we_read_pefts(tiny_model, stir, logits, tmp_path, family, config, stabilised):
    theirs = get_peft_model(
        tiny_model(family), LoraConfig(r=3, lora_alpha=5, use_rslora=stabilised, **config)
    ).eval()
    stir(theirs)
    theirs.save_pretrained(tmp_path)
    ours = tiny_model(family)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), **EXACT)
    again = tmp_path / "again"
    save_adapter(ours, again)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(tiny_model(family), again)), logits(theirs), **EXACT
    )


PATTERNS = [
    *(("gpt2", {"c_attn": 2}, {}), ("gpt2", {}, {"mlp.c_proj": 11, "h.0.*": 2.5})),
    ("gpt2", {r"h.1.\w+.c_proj": 1, "c_proj": 4, "h.0.attn.c_attn": 5}, {"c_attn": 7}),
    ("llama", {"[qv]_proj": 2, "layers.0.mlp.(up|down)_proj": 5}, {"self_attn.*": 2, "up_proj": 9}),
]


@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize(("family", "ranks", "alphas"), PATTERNS, ids=str)
def test_patterns_are_pefts(
    adapted, as_peft, tiny_model, logits, tmp_path, family, ranks, alphas, stabilised
):
    ours = adapted(family, rank_pattern=ranks, alpha_pattern=alphas, rank_stabilised=stabilised)
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=stabilised,
        target_modules="all-linear",
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )
    theirs = get_peft_model(tiny_model(family), config)
    for name, layer in lora_layers(ours).items():
        peft_layer = theirs.get_submodule(f"base_model.model.{name}")
        assert layer.rank == peft_layer.r["default"]
        assert layer.scaling == peft_layer.scaling["default"]
    save_adapter(ours, tmp_path)
    theirs.save_pretrained(tmp_path / "peft")
    shapes = [
        {key: tensor.shape for key, tensor in load_file(folder / TENSORS).items()}
        for folder in (tmp_path, tmp_path / "peft")
    ]
    assert shapes[0] == shapes[1]
    torch.testing.assert_close(logits(as_peft(tmp_path, family)), logits(ours), **EXACT)


@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "rslora"])
def test_patterns_hold_for_all_parts_of_a_layer(
    adapted, as_peft, tiny_model, logits, tmp_path, stabilised
):
    model, again = (
        adapted(
            targets=["c_attn[q,v]", "c_fc"],
            rank_pattern={"h.1.attn.c_attn": 2},
            alpha_pattern={"c_attn": 7},
            rank_stabilised=stabilised,
        ),
        tiny_model(),
    )
    first, second = (model.get_submodule(f"transformer.h.{i}.attn.c_attn") for i in (0, 1))
    assert [tuple(layer.lora_A.shape) for layer in (first, second)] == [(6, 16), (4, 16)]
    assert (first.alpha, second.alpha) == (7, 7)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(logits(as_peft(tmp_path)), logits(model), **EXACT)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_we_read_the_target_all_linear(adapted, tiny_model, logits, tmp_path):
    """PEFT resolves "all-linear" before it saves, but a file may contain it."""
    model, again = adapted("llama"), tiny_model("llama")
    save_adapter(model, tmp_path)
    edit(tmp_path, target_modules="All-Linear")
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("targets", ["c_attn", "c_attn[q,v]"])
def test_gradients_are_pefts(adapted, as_peft, input_ids, tmp_path, targets):
    model = adapted(targets=targets)
    save_adapter(model, tmp_path)
    theirs = as_peft(tmp_path)
    for parameter in theirs.parameters():
        parameter.requires_grad_(True)
    for each in (model, theirs):
        each(input_ids=input_ids, labels=input_ids).loss.backward()
    for name, layer in lora_layers(model).items():
        peft_layer = theirs.get_submodule(f"base_model.model.{name}")
        their_b = peft_layer.lora_B["default"].weight.grad
        blocks = [
            their_b[part.slice, index * layer.rank : (index + 1) * layer.rank]
            for index, part in enumerate(layer.parts)
        ]
        torch.testing.assert_close(layer.lora_B.grad, torch.cat(blocks), **EXACT)
        their_a = peft_layer.lora_A["default"].weight.grad
        torch.testing.assert_close(layer.lora_A.grad, their_a, **EXACT)


def test_parts_that_peft_saved_again_load_as_a_whole(
    adapted, as_peft, tiny_model, logits, tmp_path
):
    model, again = adapted(targets="c_attn[q,v]"), tiny_model()
    save_adapter(model, tmp_path)
    as_peft(tmp_path).save_pretrained(tmp_path / "peft")
    load_adapter(again, tmp_path / "peft")
    torch.testing.assert_close(logits(again), logits(model), **EXACT)
    layers = lora_layers(again).values()
    loaded = {(layer.rank, layer.parts[0].height, len(layer.parts)) for layer in layers}
    assert loaded == {(6, 48, 1)}


def test_bf16_model_saves_and_loads_fp32_adapters(tiny_model, stir, logits, tmp_path):
    model, again = (tiny_model(dtype=torch.bfloat16) for _ in range(2))
    adapt(model, LoraSettings(rank=2))
    stir(model)
    save_adapter(model, tmp_path)
    load_adapter(again, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / TENSORS).values()} == {torch.float32}
    assert torch.equal(logits(again), logits(model))


def test_the_configuration_has_the_base_and_the_shortest_targets(adapted, tmp_path):
    save_adapter(adapted(targets="attention"), tmp_path, base_name="gpt2", revision="main")
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == "gpt2"
    assert config["revision"] == "main"
    assert config["target_modules"] == ["c_attn", "attn.c_proj"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 5, {})


def test_saving_a_model_without_adapter_is_refused(tiny_model, tmp_path):
    with pytest.raises(InputError) as caught:
        save_adapter(tiny_model(), tmp_path)
    message = "This model has no adapter to save; call adapt or load_adapter first."
    assert str(caught.value) == message


def edit(folder, **values):
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(folder, change):
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def truncate(folder):
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[:-7])


def folder_instead(folder):
    (folder / TENSORS).unlink()
    (folder / TENSORS).mkdir()


def pickle_only(folder):
    (folder / TENSORS).rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / TENSORS).unlink(), "adapter_model.safetensors does not exist"),
        (lambda f: (f / ADAPTER_CONFIG).unlink(), "adapter_config.json does not exist"),
        (lambda f: (f / ADAPTER_CONFIG).write_text("{"), "not valid JSON"),
        (lambda f: (f / ADAPTER_CONFIG).write_text("[]"), "not a JSON object"),
        (pickle_only, "adapter_model.bin, a pickle"),
        (folder_instead, "cannot be read"),
        (truncate, "not a complete safetensors file"),
        (lambda f: edit(f, peft_type="IA3"), "peft_type is 'IA3'"),
        (lambda f: edit(f, use_dora=True), "lacks 2 tensors .*c_attn.lora_magnitude_vector"),
        (
            lambda f: edit(f, use_dora=True, alora_invocation_tokens=[3]),
            "DoRA and an activated LoRA, which exclude each other",
        ),
        (lambda f: edit(f, modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\]"),
        (lambda f: edit(f, bias="all"), "bias is 'all'"),
        (lambda f: edit(f, lora_bias=True), "lora_bias is True"),
        (lambda f: edit(f, invented_next_year={"x": 1}), "invented_next_year is"),
        (lambda f: edit(f, init_lora_weights="pissa_niter_4"), "changes the base"),
        (lambda f: edit(f, target_modules=None), "target_modules: Field required"),
        (lambda f: edit(f, target_modules="*"), r'target_modules: .*"\*" is not a valid reg'),
        (lambda f: edit(f, rank_pattern={"(": 2}), "rank_pattern: .*not a valid regular"),
        (lambda f: edit(f, r="many"), "r: .*integer"),
        (lambda f: edit(f, lora_alpha=-1), "lora_alpha: .*greater than 0"),
        (lambda f: edit(f, r=4), r"shape \(3, 16\), but this model and .* need \(4, 16\)"),
        (lambda f: edit(f, target_modules=["c_attn", "c_fc"]), "lacks 4 tensors .*c_fc.lora_A"),
        (lambda f: edit(f, target_modules=["mlp.c_proj"]), "lacks 4 tensors"),
        (
            lambda f: edit_tensors(f, lambda t: t.pop(B)),
            "lacks 1 tensor that .*h.0.attn.c_attn.lora_B",
        ),
        (
            lambda f: edit_tensors(f, lambda t: t.update(x=torch.ones(1))),
            "holds 1 tensor beyond those of this model .* such as x",
        ),
        (
            lambda f: edit_tensors(
                f,
                lambda t: t.update({"base_model.model.transformer.wte.weight": torch.ones(9, 16)}),
            ),
            "whole weights .*transformer.wte.weight: its vocabulary was resized",
        ),
        (lambda f: edit_tensors(f, lambda t: t.update({A: t[A][:, 1:].clone()})), r"\(3, 15\)"),
        (lambda f: edit_tensors(f, lambda t: t[B].fill_(float("nan"))), "lora_B.* holds a NaN"),
    ],
)
def test_broken_files_are_refused_and_change_nothing(adapted, tiny_model, tmp_path, damage, words):
    save_adapter(adapted(targets="c_attn"), tmp_path)
    damage(tmp_path)
    model = tiny_model()
    with pytest.raises(InputError, match=words) as error:
        load_adapter(model, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "note",
    [
        "{",
        '{"transformer.h.0.attn.c_attn": {"rows": []}}',
        '{"transformer.h.0.attn.c_attn": {"alpha": 5, "rows": [{"start": 0, "stop": 99}]}}',
        '{"transformer.h.0.attn.c_attn": {"alpha": 5, "rows": [{"start": 0, "stop": 16}]}}',
        '{"transformer.h.0.attn.c_attn": {"alpha": 5, "rows": ['
        + ", ".join(['{"start": 0, "stop": 16}'] * 4)
        + "]}}",
    ],
)
def test_a_header_that_does_not_fit_is_refused(adapted, tiny_model, tmp_path, note):
    save_adapter(adapted(targets="c_attn[q,v]"), tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    write_tensors(tmp_path / TENSORS, tensors, {"format": "pt", "loraqa_rows": note})
    with pytest.raises(InputError, match="loraqa_rows in the header"):
        load_adapter(tiny_model(), tmp_path)


def test_another_base_model_is_refused_by_name(adapted, tiny_model, tmp_path):
    save_adapter(adapted(targets="c_attn"), tmp_path, base_name="openai/gpt2")
    with pytest.raises(InputError, match="beyond those of.*trained on, openai/gpt2"):
        load_adapter(tiny_model("llama"), tmp_path)


def test_an_adapted_model_takes_no_second_adapter(adapted, tmp_path):
    model = adapted()
    save_adapter(model, tmp_path)
    with pytest.raises(InputError, match="has an adapter already"):
        load_adapter(model, tmp_path)


def test_a_tied_head_is_refused(tiny_model, tmp_path):
    model = tiny_model(tied=False)
    adapt(model, LoraSettings(target_modules="lm_head"))
    save_adapter(model, tmp_path)
    with pytest.raises(InputError, match="lm_head shares its weight"):
        load_adapter(tiny_model(tied=True), tmp_path)


def test_a_failed_save_leaves_the_old_adapter(adapted, tiny_model, logits, tmp_path):
    first, again = adapted(targets="c_attn"), tiny_model()
    save_adapter(first, tmp_path)
    kept = tmp_path.with_name("kept")
    shutil.copytree(tmp_path, kept)
    with full_disk(), pytest.raises(OSError, match=f"{TENSORS} cannot be written"):
        save_adapter(adapted(targets="c_fc"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in kept.iterdir())
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(first))
