"""The layers that each target selects, in the model families that loraqa supports."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loraqa.errors import InputError
from loraqa.lora.adapt import adapt
from loraqa.lora.layer import Part
from loraqa.lora.settings import LoraSettings
from loraqa.lora.targets import select

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:fan_in_fan_out:UserWarning"
)

GPT2_ATTENTION, GPT2_MLP = ["attn.c_attn", "attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"]
LLAMA_ATTENTION = [f"self_attn.{part}_proj" for part in "qkvo"]
LLAMA_MLP = [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
LLAMA_LIKE = ["llama", "mistral", "qwen2", "qwen3"]
WIDTH = 16


def in_every_block(family, parts):
    blocks = "transformer.h" if family == "gpt2" else "model.layers"
    return [f"{blocks}.{index}.{part}" for index in (0, 1) for part in parts]


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (["attention"], GPT2_ATTENTION),
        (["mlp"], GPT2_MLP),
        (["all-linear"], GPT2_ATTENTION + GPT2_MLP),
        (["attention", "mlp"], GPT2_ATTENTION + GPT2_MLP),
        (["c_attn"], ["attn.c_attn"]),
        (["c_proj"], ["attn.c_proj", "mlp.c_proj"]),
        (["mlp.c_proj"], ["mlp.c_proj"]),
        (["c_(attn|fc)"], ["attn.c_attn", "mlp.c_fc"]),
        (["c_fc", "mlp"], GPT2_MLP),
    ],
    ids=str,
)
def test_gpt2(tiny_model, targets, parts):
    assert list(select(tiny_model("gpt2"), targets)) == in_every_block("gpt2", parts)


@pytest.mark.parametrize("family", LLAMA_LIKE)
@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (["attention"], LLAMA_ATTENTION),
        (["mlp"], LLAMA_MLP),
        (["all-linear"], LLAMA_ATTENTION + LLAMA_MLP),
        (["v_proj", "q_proj"], ["self_attn.q_proj", "self_attn.v_proj"]),
        (["[qv]_proj"], ["self_attn.q_proj", "self_attn.v_proj"]),
    ],
    ids=str,
)
def test_llama_like(tiny_model, family, targets, parts):
    assert list(select(tiny_model(family), targets)) == in_every_block(family, parts)


def test_a_whole_name_and_a_choice_of_blocks(tiny_model):
    assert list(select(tiny_model(), ["transformer.h.1.attn.c_attn", r"h.0.mlp.\w+"])) == [
        "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_proj",
        "transformer.h.1.attn.c_attn",
    ]


@pytest.mark.parametrize("family", ["gpt2", *LLAMA_LIKE])
def test_all_linear_equals_pefts(tiny_model, family):
    peft_model = get_peft_model(tiny_model(family), LoraConfig(target_modules="all-linear"))
    theirs = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer")
        for name, _ in peft_model.named_modules()
        if name.endswith(".base_layer")
    }
    assert set(select(tiny_model(family), ["all-linear"])) == theirs


def test_parts_of_a_fused_projection(tiny_model):
    q, v = Part(0, WIDTH, "q"), Part(2 * WIDTH, 3 * WIDTH, "v")
    for targets in (["c_attn[q,v]"], ["c_attn[v,q]"], ["c_attn[v]", "attn.c_attn[q]"]):
        assert set(select(tiny_model(), targets).values()) == {(q, v)}
    assert select(tiny_model(), ["c_attn"])["transformer.h.0.attn.c_attn"] == (Part(0, 3 * WIDTH),)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_part_has_the_rows_that_attention_reads(tiny_model, input_ids, name):
    """Compare with GPT-2's own split of c_attn's output into q, k and v."""
    model = tiny_model()
    attention = model.transformer.h[0].attn
    (part,) = select(model, [f"c_attn[{name}]"])["transformer.h.0.attn.c_attn"]
    seen = {}
    attention.c_attn.register_forward_hook(lambda *call: seen.update(fused=call[2]))
    caches = model(input_ids=input_ids, use_cache=True).past_key_values
    fused = seen["fused"][..., part.slice]
    cached = {"k": caches.layers[0].keys, "v": caches.layers[0].values}
    if name in cached:
        assert torch.equal(cached[name].transpose(1, 2).flatten(2), fused)
    else:
        assert (part.start, part.stop) == (0, attention.embed_dim)


@pytest.mark.parametrize(
    ("family", "targets", "words"),
    [
        ("gpt2", "q_proj", '"q_proj" .*"c_proj".*c_attn, c_fc, c_proj, lm_head, or a group'),
        ("gpt2", "wte", '"wte"'),
        ("llama", "c_attn", "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj"),
        ("gpt2", "all_linear", 'did you mean "all-linear"'),
        ("gpt2", "*.c_attn", "not a valid regular expression"),
        ("gpt2", "c_attn[q,x]", r"h\.0.* has no parts \[q,x\].*q, k, v"),
        ("gpt2", "c_fc[q]", "not known to be fused"),
        ("llama", "q_proj[q]", "not known to be fused"),
    ],
)
def test_a_target_that_matches_nothing_lists_the_known_ones(tiny_model, family, targets, words):
    with pytest.raises(InputError, match=words):
        select(tiny_model(family), [targets])


def test_an_empty_group_is_refused(tiny_model):
    model = tiny_model()
    for block in model.transformer.h:
        block.mlp = torch.nn.Identity()
    with pytest.raises(InputError, match=r'called "mlp"; target_modules can be c_attn'):
        select(model, ["mlp"])


def test_one_unknown_target_among_good_ones_is_refused(tiny_model):
    with pytest.raises(InputError, match="nothing"):
        select(tiny_model(), ["c_attn", "nothing"])


def test_a_whole_layer_and_a_part_of_it_are_refused(tiny_model):
    with pytest.raises(InputError) as caught:
        select(tiny_model(), ["attention", "c_attn[q]"])
    assert str(caught.value) == (
        "target_modules names both transformer.h.0.attn.c_attn as a whole and parts of it; "
        "keep one of the two."
    )


@pytest.mark.parametrize(("family", "embedding"), [("gpt2", "wte"), ("llama", "embed_tokens")])
def test_tied_head_is_refused_and_an_untied_one_is_not(tiny_model, family, embedding):
    with pytest.raises(InputError, match=rf"lm_head shares its weight with .*{embedding}"):
        select(tiny_model(family, tied=True), ["lm_head"])
    assert list(select(tiny_model(family, tied=False), ["lm_head"])) == ["lm_head"]


def test_quantised_weights_are_refused(tiny_model):
    model = tiny_model()
    layer = model.transformer.h[0].mlp.c_fc
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="c_fc is quantised"):
        select(model, ["mlp"])


def test_an_adapted_model_is_refused(tiny_model):
    model = tiny_model()
    adapt(model, LoraSettings())
    with pytest.raises(InputError, match="has an adapter already"):
        adapt(model, LoraSettings(target_modules="c_attn"))
