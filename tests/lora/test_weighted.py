"""A weighted sum of adapters equals PEFT's, and what cannot be added is refused."""

import pytest
import torch
from peft import PeftModel

from loraqa.errors import InputError
from loraqa.lora.adapt import adapt, install
from loraqa.lora.adapter import load_adapter, save_adapter
from loraqa.lora.settings import LoraSettings
from loraqa.lora.switch import take_out
from loraqa.lora.weighted import weighted_sum

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:fan_in_fan_out:UserWarning",
    "ignore:Already found:UserWarning",
)
EXACT = {"rtol": 1e-12, "atol": 1e-12}
WEIGHTS = {"law": 0.7, "news": -0.3}
# PEFT scales a sum whose first adapter is rank-stabilised by √r, so here only others are.
CASES = {
    "gpt2": ({"target_modules": "c_attn[q,v]"}, {"target_modules": "all-linear", "rank": 2}),
    "gpt2 in other parts": (
        {"target_modules": ["c_attn[q,v]", "c_fc"]},
        {"target_modules": "c_attn[k,v]", "alpha": 1.5, "rank_stabilised": True},
    ),
    "llama": (
        {"target_modules": "attention", "rank_pattern": {"q_proj": 2}},
        {"target_modules": ["q_proj", "mlp"], "rank_stabilised": True},
    ),
    "llama apart": ({"target_modules": "attention"}, {"target_modules": "mlp"}),
}


@pytest.fixture
def layers_of():
    """Return a function that makes the layers of a random adapter over a model."""

    def make(model, seed=0, invocation=(), **settings):
        adapt(model, LoraSettings(**{"rank": 3, "alpha": 5.0, **settings}), seed, invocation)
        layers = take_out(model)
        generator = torch.Generator().manual_seed(seed)
        for layer in layers.values():
            layer.lora_B.data.normal_(generator=generator)
        return layers

    return make


@pytest.mark.parametrize(("case", "settings"), CASES.items(), ids=list(CASES))
def test_the_sum_is_that_of_peft_in_memory_and_in_a_file(
    case, settings, tiny_model, layers_of, logits, tmp_path
):
    family = case.split()[0]
    model = tiny_model(family)
    adapters = {}
    for seed, (name, chosen) in enumerate(zip(WEIGHTS, settings, strict=True)):
        adapters[name] = layers_of(model, seed, **chosen)
        install(model, adapters[name])
        save_adapter(model, tmp_path / name)
        take_out(model)

    theirs = PeftModel.from_pretrained(tiny_model(family), tmp_path / "law", adapter_name="law")
    theirs.load_adapter(tmp_path / "news", adapter_name="news")
    theirs.add_weighted_adapter(
        list(WEIGHTS), list(WEIGHTS.values()), "sum", combination_type="cat"
    )
    alone = logits(theirs)
    theirs.set_adapter("sum")
    expected = logits(theirs)
    assert not torch.allclose(expected, alone, rtol=0.01)

    install(model, weighted_sum(WEIGHTS, adapters))
    torch.testing.assert_close(logits(model), expected, **EXACT)
    save_adapter(model, tmp_path / "sum")
    ours = PeftModel.from_pretrained(tiny_model(family), tmp_path / "sum")
    torch.testing.assert_close(logits(ours), expected, **EXACT)
    again = tiny_model(family)
    load_adapter(again, tmp_path / "sum")
    assert torch.equal(logits(again), logits(model))


def test_weights_belong_to_updates(tiny_model, layers_of, logits):
    """Twice an adapter, less once the same, is the adapter."""
    model = tiny_model("llama")
    adapters = {name: layers_of(model, seed=1) for name in ("one", "two")}
    install(model, adapters["one"])
    expected = logits(model)
    take_out(model)
    install(model, weighted_sum({"one": 2.0, "two": -1.0}, adapters))
    torch.testing.assert_close(logits(model), expected, **EXACT)


def test_activated_adapters_give_an_activated_sum(tiny_model, layers_of):
    model = tiny_model("gpt2")
    adapters = {
        name: layers_of(model, seed, invocation=(7, 8), activated=True)
        for seed, name in enumerate(WEIGHTS)
    }
    assert {s.invocation for s in weighted_sum(WEIGHTS, adapters).values()} == {(7, 8)}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dora": True}, "news was trained with DoRA"),
        ({"activated": True, "invocation": (7,)}, "law and news act on different tokens"),
    ],
)
def test_what_cannot_be_added_is_refused_by_name(tiny_model, layers_of, settings, says):
    model = tiny_model("gpt2")
    adapters = {"law": layers_of(model), "news": layers_of(model, **settings)}
    with pytest.raises(InputError, match=says):
        weighted_sum(WEIGHTS, adapters)
