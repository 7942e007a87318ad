"""A tanh-GELU of transformers becomes one tensor operation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from loraqa.model.load import load_model
from loraqa.model.runner import TreeRunner
from loraqa.speed import fused_gelu


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("gelu_new", True),
        ("gelu_pytorch_tanh", True),
        ("gelu_accurate", True),
        ("gelu_fast", True),
        ("gelu", False),
        ("quick_gelu", False),
        ("gelu_10", False),
    ],
)
def test_a_tanh_gelu_is_one_operation_and_others_stay(
    tiny_folder: Path, tmp_path: Path, name: str, fused: bool
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "activation_function": name}))
    model = load_model(folder, dtype="float64", device="cpu")
    runner = TreeRunner(model)
    assert fused_gelu.applies(runner, frozenset()) == fused
    fused_gelu.wrap(runner)
    model.set_attn_implementation("sdpa")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        expected = reference(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-9, atol=1e-10)
    activation = model.transformer.h[0].mlp.act
    assert isinstance(activation, nn.GELU) == fused
    assert fused or type(activation) is type(reference.transformer.h[0].mlp.act)
