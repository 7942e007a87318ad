"""The table of what LoRA learned agrees with the dense updates."""

import torch
from tests.conftest import tiny_model

from loraqa.lora.adapt import adapt
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.lora.spectra import spectra
from loraqa.report.analysis import spectra_figure, spectra_table


def test_the_table_tells_the_size_of_each_update() -> None:
    model = tiny_model("gpt2")
    adapt(model, LoraSettings(rank=2, target_modules=("c_attn",)))
    torch.manual_seed(0)
    for layer in lora_layers(model).values():
        for _, _, b in layer.blocks():
            torch.nn.init.normal_(b)
    table = spectra_table(spectra(model))
    assert [row[0] for row in table.rows] == list(lora_layers(model))
    (layer, *_) = lora_layers(model).values()
    ((_, a, b),) = layer.blocks()
    update = layer.scaling * b @ a
    expected = torch.linalg.svdvals(update.detach().double())
    assert torch.isclose(torch.tensor(float(table.rows[0][2] or 0)), update.norm().detach())
    assert torch.isclose(torch.tensor(float(table.rows[0][4] or 0)), expected[0].float())


def test_the_figure_has_a_panel_for_each_kind_of_layer() -> None:
    model = tiny_model("gpt2")
    adapt(model, LoraSettings(rank=2, target_modules=("c_attn", "c_fc")))
    axes = spectra_figure(spectra(model)).axes
    titles = {panel.get_title("left") for panel in axes}
    assert {"attn.c_attn", "mlp.c_fc"} <= titles
