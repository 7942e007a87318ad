"""Updates against dense matrices and PEFT: their figures, and what changing them does."""

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from loraqa.analysis.updates import compare, layers_of_kinds, measure
from loraqa.errors import InputError
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import load_adapter, save_adapter
from loraqa.lora.layer import LoraLinear, Part, lora_layers
from loraqa.lora.settings import ADAPTER_CONFIG, LoraSettings
from loraqa.lora.updates import cut, restoring, scale, updates

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:fan_in_fan_out:UserWarning"
)

KINDS = {"gpt2": "c_fc", "llama": "q_proj"}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def by_peft(tiny_model, stir, tmp_path):
    """Write an adapter with PEFT, whose layers differ in rank and α; return folder and model."""

    def make(family, **options):
        kind = KINDS[family]
        model = get_peft_model(
            tiny_model(family),
            LoraConfig(
                r=3,
                lora_alpha=7,
                target_modules="all-linear",
                rank_pattern={kind: 2},
                alpha_pattern={kind: 5},
                fan_in_fan_out=family == "gpt2",
                **options,
            ),
        )
        stir(model)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", model

    return make


def loaded(tiny_model, family, folder):
    model = tiny_model(family)
    load_adapter(model, folder)
    return model


@pytest.mark.parametrize("family", KINDS)
def test_figures_of_an_adapter_by_peft_are_those_of_its_dense_updates(by_peft, tiny_model, family):
    folder, theirs = by_peft(family)
    plain = tiny_model(family)
    found = updates(loaded(tiny_model, family, folder))
    assert {len(each.a) for each in found} == {2, 3}
    for each in found:
        figures = measure(each)
        layer = theirs.get_submodule(f"base_model.model.{each.name}")
        delta = layer.get_delta_weight("default").detach()
        weight = plain.get_parameter(f"{each.name}.weight").detach()
        if family == "gpt2":
            delta, weight = delta.t(), weight.t()
        u, values, vt = torch.linalg.svd(delta, full_matrices=False)
        r = figures.rank
        assert r == (2 if KINDS[family] in each.name else 3)
        assert figures.directions == r
        assert figures.singular_values == pytest.approx(values[:r].tolist())
        assert figures.norm == pytest.approx(delta.norm().item())
        assert figures.base_norm == pytest.approx(weight.norm().item())
        assert figures.relative_norm == pytest.approx((delta.norm() / weight.norm()).item())
        assert figures.stable_rank == pytest.approx(((delta.norm() / values[0]) ** 2).item())
        assert figures.top_share == pytest.approx(((values[0] / delta.norm()) ** 2).item())
        own = torch.linalg.svdvals(weight)
        assert figures.base_spectral_norm == pytest.approx(own[0].item(), rel=0.01)
        assert figures.in_base == pytest.approx(own[:r].norm().item(), rel=0.01)
        in_own = (u[:, :r].t() @ weight @ vt[:r].t()).norm().item()
        assert figures.in_own == pytest.approx(in_own)
        assert figures.amplification == pytest.approx(delta.norm().item() / in_own)


class OneLayer(nn.Module):
    """A model of one layer whose update has the given singular values."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.only = LoraLinear(nn.Linear(6, 8), 4, 4.0)
        with torch.no_grad():
            for index, value in enumerate(values):
                self.only.lora_B[index, index], self.only.lora_A[index, 5 - index] = value, 1


def test_known_singular_values():
    (found,) = map(measure, updates(OneLayer(3, 1)))
    assert found.singular_values == pytest.approx([3, 1, 0, 0])
    assert found.norm == pytest.approx(math.sqrt(10))
    assert (found.layer, found.kind, found.directions) == (None, "only", 2)


def test_an_update_of_zero():
    (update,) = updates(OneLayer())
    found = measure(update)
    assert found.singular_values == (0, 0, 0, 0)
    assert (found.norm, found.relative_norm, found.stable_rank, found.top_share) == (0, 0, 0, 0)
    assert (found.directions, found.amplification, found.preference) == (0, None, None)
    assert compare("itself", [update], [update]).inputs == ()


def test_a_weight_of_zero_or_nan():
    model = OneLayer(3)
    nn.init.zeros_(model.only.base.weight)
    (found,) = map(measure, updates(model))
    assert (found.relative_norm, found.amplification) == (None, None)
    with torch.no_grad():
        model.only.base.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="weight of only holds a NaN"):
        measure(*updates(model))


def test_each_part_is_an_update_of_its_own():
    model = OneLayer()
    model.only = LoraLinear(nn.Linear(6, 8), 1, 1.0, parts=(Part(0, 2, "q"), Part(4, 8, "v")))
    nn.init.ones_(model.only.lora_A)
    with torch.no_grad():
        model.only.lora_B[2:] = 1  # only v
    q, v = map(measure, updates(model))
    assert (q.name, v.name) == ("only[q]", "only[v]")
    assert (q.norm, v.norm) == pytest.approx((0, math.sqrt(4 * 6)))


@pytest.mark.parametrize("family", KINDS)
def test_a_layer_switched_off_is_one_whose_b_is_zero_in_peft(by_peft, tiny_model, logits, family):
    folder, theirs = by_peft(family)
    model = loaded(tiny_model, family, folder)
    before = logits(model)
    with restoring(updates(model)):
        scale([each for each in updates(model) if ".1." in each.name], 0)
        off = logits(model)
    zeroed = [name for name, _ in theirs.named_parameters() if ".1." in name and "lora_B" in name]
    assert len(zeroed) == {"gpt2": 4, "llama": 7}[family]
    for name in zeroed:
        theirs.get_parameter(name).data.zero_()
    torch.testing.assert_close(off, logits(theirs), **EXACT)
    assert not torch.allclose(off, before, atol=0.01)
    assert logits(model).equal(before)


@pytest.mark.parametrize("family", KINDS)
def test_a_scaled_update_is_scaled_in_peft(by_peft, tiny_model, logits, family):
    folder, _ = by_peft(family)
    model = loaded(tiny_model, family, folder)
    for factor in (0.5, 0):
        with restoring(updates(model)):
            scale(updates(model), factor)
            found = logits(model)
        with_factor = PeftModel.from_pretrained(tiny_model(family), folder)
        for module in with_factor.modules():
            if hasattr(module, "scale_layer"):
                module.set_scale("default", factor)
        torch.testing.assert_close(found, logits(with_factor), **EXACT)
    torch.testing.assert_close(found, logits(tiny_model(family)), **EXACT)


@pytest.mark.parametrize("targets", ["all-linear", "c_attn[q,v]"])
def test_cutting_to_a_rank_is_the_dense_truncation(tiny_model, stir, logits, targets):
    model = tiny_model()
    adapt(model, LoraSettings(rank=3, alpha=7, target_modules=targets))
    stir(model)
    before = logits(model)
    with restoring(updates(model)):
        cut(updates(model), 3)
        torch.testing.assert_close(logits(model), before, **EXACT)
    with restoring(updates(model)):
        cut(updates(model), 2)
        found = logits(model)
    assert not torch.allclose(found, before, atol=0.01)
    plain = tiny_model()
    for name, layer in lora_layers(model).items():
        for part, a, b in layer.blocks():
            u, values, vt = torch.linalg.svd((layer.scaling * b @ a).detach(), full_matrices=False)
            weight = plain.get_parameter(f"{name}.weight").data.t()[part.slice]
            weight += u[:, :2] * values[:2] @ vt[:2]
    torch.testing.assert_close(found, logits(plain), **EXACT)


def test_an_adapter_is_like_itself_and_unlike_another(tiny_model, stir):
    model, other = tiny_model("llama"), tiny_model("llama")
    for number, each in enumerate((model, other)):
        adapt(each, LoraSettings(rank=2 + number), seed=number)
        stir(each)
    own = updates(model)
    same = compare("same", own, own)
    assert all(each.inputs.value == pytest.approx(1) for each in same.likenesses)
    assert [same.a[i][i] for i in range(2)] == pytest.approx([1, 1])
    found = compare("other", own, updates(other))
    assert (found.ranks, len(found.a), len(found.a[0])) == ((3,), 2, 3)
    likeness = found.likenesses[0]
    a, b = (torch.linalg.svd(u.b @ u.a)[2] for u in (own[0], updates(other)[0]))
    assert likeness.inputs.value == pytest.approx((a[:2] @ b[:3].t()).norm().item() ** 2 / 2)
    assert likeness.inputs.random == pytest.approx(3 / 16)


def test_layers_of_a_kind_are_compared(tiny_model, stir):
    model = tiny_model()
    adapt(model, LoraSettings(rank=3, target_modules="mlp"))
    stir(model)
    found = {each.kind: each for each in layers_of_kinds(updates(model))}
    assert [*found] == ["mlp.c_fc", "mlp.c_proj"]
    first, second = (u for u in updates(model) if u.name.endswith("c_fc"))
    one, other = (torch.linalg.svd(each.b @ each.a)[2][:3] for each in (first, second))
    expected = (one @ other.t()).norm().item() ** 2 / 3
    assert found["mlp.c_fc"].layers == (0, 1)
    assert found["mlp.c_fc"].inputs[0][1] == pytest.approx(expected)
    assert found["mlp.c_fc"].inputs[1][1] == pytest.approx(1)


def test_dora_is_refused(by_peft, tiny_model):
    folder, _ = by_peft("llama", use_dora=True)
    with pytest.raises(InputError, match="(?i)dora"):
        updates(loaded(tiny_model, "llama", folder))


def test_saving_and_loading_keeps_the_figures(tiny_model, stir, tmp_path):
    model = tiny_model()
    adapt(model, LoraSettings(rank=3, target_modules="c_attn[q,v]"))
    stir(model)
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / ADAPTER_CONFIG).read_text())["r"] == 6
    again = loaded(tiny_model, "gpt2", tmp_path)
    assert [*map(measure, updates(again))] == [*map(measure, updates(model))]
