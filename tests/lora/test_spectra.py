"""The spectra against the dense update and textbook formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loraqa.lora.adapt import adapt
from loraqa.lora.layer import LoraLinear, Part, lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.lora.spectra import low_rank_singular_values, spectra


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(0, 99))
def test_singular_values_are_those_of_the_dense_product(height, width, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(height, rank, dtype=torch.float64, generator=generator)
    a = torch.randn(rank, width, dtype=torch.float64, generator=generator)
    values, dense = low_rank_singular_values(b, a), torch.linalg.svdvals(b @ a)
    count = min(len(values), len(dense))
    torch.testing.assert_close(values[:count], dense[:count], rtol=1e-10, atol=1e-10)
    assert (values[count:] < 1e-10).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "targets"), [("gpt2", "all-linear"), ("gpt2", "c_attn[q,v]"), ("llama", "mlp")]
)
def test_every_layer_against_its_dense_update(tiny_model, stir, family, targets, dtype):
    model = tiny_model(family, dtype)
    adapt(model, LoraSettings(rank=3, alpha=7, target_modules=targets))
    stir(model)
    found = {spectrum.name: spectrum for spectrum in spectra(model)}
    blocks = [
        (f"{name}[{part.name}]" if part.name else name, layer, part, b.double() @ a.double())
        for name, layer in lora_layers(model).items()
        for part, a, b in layer.blocks()
    ]
    assert [*found] == [name for name, *_ in blocks]
    for name, layer, part, product in blocks:
        spectrum, update = found[name], 7 / 3 * product
        assert spectrum.singular_values == pytest.approx(torch.linalg.svdvals(update)[:3].tolist())
        assert spectrum.norm == pytest.approx(torch.linalg.matrix_norm(update).item())
        frozen = layer.base.weight if family == "llama" else layer.base.weight.t()
        base_norm = frozen[part.start : part.stop].double().norm().item()
        assert spectrum.base_norm == pytest.approx(base_norm)
        assert spectrum.relative_norm == pytest.approx(update.norm().item() / base_norm)
        spectral_norm = torch.linalg.matrix_norm(update, 2)
        stable_rank = (update.norm() / spectral_norm).square().item()
        assert spectrum.stable_rank == pytest.approx(stable_rank)
        assert spectrum.top_share == pytest.approx(1 / stable_rank)
        assert spectrum.rank == 3


class OneLayer(nn.Module):
    """A model of one layer whose update has the given singular values."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.only = LoraLinear(nn.Linear(6, 8), 4, 4.0)
        with torch.no_grad():
            for index, value in enumerate(values):
                self.only.lora_B[index, index], self.only.lora_A[index, 5 - index] = value, 1


def test_known_spectrum():
    (spectrum,) = spectra(OneLayer(3, 1))
    assert spectrum.singular_values == pytest.approx([3, 1, 0, 0])
    assert spectrum.norm == pytest.approx(math.sqrt(10))
    assert spectrum.stable_rank == pytest.approx(10 / 9)
    assert spectrum.top_share == pytest.approx(9 / 10)
    assert spectrum.effective_rank == pytest.approx(4 / 27**0.25)  # exp H(3/4, 1/4)


def test_equal_values_have_their_number_as_effective_rank():
    (spectrum,) = spectra(OneLayer(2, 2, 2))
    assert (spectrum.effective_rank, spectrum.stable_rank) == pytest.approx((3, 3))


def test_an_update_of_zero():
    (spectrum,) = spectra(OneLayer())
    assert spectrum.singular_values == (0, 0, 0, 0)
    summary = (spectrum.norm, spectrum.relative_norm, spectrum.stable_rank)
    assert (*summary, spectrum.effective_rank, spectrum.top_share) == (0, 0, 0, 0, 0)


def test_each_part_has_its_own_spectrum():
    model = OneLayer()
    model.only = LoraLinear(nn.Linear(6, 8), 1, 1.0, parts=(Part(0, 2, "q"), Part(4, 8, "v")))
    nn.init.ones_(model.only.lora_A)
    with torch.no_grad():
        model.only.lora_B[2:] = 1  # only v
    q, v = spectra(model)
    assert (q.name, v.name) == ("only[q]", "only[v]")
    assert (q.norm, v.norm) == pytest.approx((0, math.sqrt(4 * 6)))
