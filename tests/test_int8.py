"""An int8 base, end to end: trained, resumed, asked, exported, and its costs estimated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from loraqa.adapter.info import read_adapter_info
from loraqa.answer.export import export_adapter, export_merged
from loraqa.answer.load import load_adapted, load_model
from loraqa.errors import InputError
from loraqa.finetuning import finetune
from loraqa.lora.int8 import is_quantised
from loraqa.lora.merge import merge_and_unload
from loraqa.reader import Reader
from loraqa.speed.cpu.prepacked import PrepackedLinear
from loraqa.squad import write_official
from loraqa.train.manifest import saved_steps
from loraqa.train.settings import RunSettings
from tests.conftest import Call, assert_near, tiny_model
from tests.finetuning.test_recipe import choose, weights
from tests.train.conftest import PASSAGES

pytestmark = pytest.mark.usefixtures("without_plots")

IDS = torch.arange(1, 30)[None]
MILL = "The mill was built by Ruth Olen."


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(
    request: pytest.FixtureRequest, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a tiny base model."""
    folder = tmp_path_factory.mktemp(f"tiny-{request.param}")
    tiny_model(request.param).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chosen(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """Settings of eight steps with checkpoints after the third, the sixth and the last."""
    data = tmp_path_factory.mktemp("data") / "train.json"
    write_official(data, PASSAGES, "1.1")
    return choose(base, data, "model.quantisation=int8", "checkpoint.keep=5")


@pytest.fixture(scope="module")
def run(chosen: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    finetune(chosen, folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_a_resumed_run_has_the_same_bits(run: Path, chosen: RunSettings, tmp_path: Path) -> None:
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "adapter")
    for step in saved_steps(again / "checkpoints")[1:]:
        shutil.rmtree(again / "checkpoints" / f"step-{step:06}")
    finetune(chosen, again, resume=True)
    assert weights(again) == weights(run)


def test_a_run_cannot_be_resumed_over_other_weights(run: Path, chosen: RunSettings) -> None:
    full = chosen.model.model_copy(update={"quantisation": "none"})
    with pytest.raises(InputError, match=r"quantisation was 'int8', now 'none'"):
        finetune(chosen.model_copy(update={"model": full}), run, resume=True)


def test_the_adapter_is_loaded_over_int8_unless_full_precision_is_asked_for(run: Path) -> None:
    assert read_adapter_info(run / "adapter").base.quantisation == "int8"
    int8, full = load_model(run).model, load_model(run, quantisation="none").model
    assert is_quantised(int8)
    assert not is_quantised(full)
    # Rounding is seen, but changes little.
    error = (logits(int8) - logits(full)).norm() / logits(full).norm()
    assert 1e-4 < error < 0.1
    for quantisation, packed in ((None, False), ("none", True)):
        reader = Reader.load(run, quantisation=quantisation, device="cpu")
        assert any(isinstance(m, PrepackedLinear) for m in reader.runner.model.modules()) == packed
        (answer,) = reader.answer(MILL, ["Who built the mill?"])
        assert answer.log_probability < 0


def test_an_adapter_that_says_nothing_of_int8_is_loaded_in_full(run: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    info = json.loads((adapter / "loraqa.json").read_text())
    del info["base"]["quantisation"], info["sha256"]
    (adapter / "loraqa.json").write_text(json.dumps(info))
    assert not is_quantised(load_model(adapter).model)
    assert is_quantised(load_model(adapter, quantisation="int8").model)


def test_a_merged_export_has_the_weights_of_the_files(run: Path, tmp_path: Path) -> None:
    export_merged(run, tmp_path / "merged")
    expected, _, _ = load_adapted(run, dtype="float32", quantisation="none", device="cpu")
    merge_and_unload(expected, IDS)
    assert_near(logits(load_model(tmp_path / "merged").model), logits(expected), 1e-5)
    assert read_adapter_info(tmp_path / "merged").base.quantisation == "none"


def test_an_exported_adapter_still_says_int8(run: Path, tmp_path: Path) -> None:
    export_adapter(run, tmp_path / "adapter")
    assert weights(run) == (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert read_adapter_info(tmp_path / "adapter").base.quantisation == "int8"


def test_the_commands(run: Path, chosen: RunSettings, call: Call, tmp_path: Path) -> None:
    text = tmp_path / "mill.txt"
    text.write_text(MILL)
    asked = ("ask", run, "--context-file", text, "Who built the mill?", "--json")
    for choice in ([], ["--quantisation", "none"]):
        status, out, err = call(*asked, *choice)
        assert status == 0, err
        assert json.loads(out)
    status, out, err = call("analyze", run, "--json")
    assert status == 0, err
    settings = ["--model", chosen.model.source, "--train", chosen.data.train, "--dry-run", "--json"]
    sizes = []
    for quantisation in ("int8", "none"):
        chosen_too = ["--set", "model.dtype=float32", "--set", f"model.quantisation={quantisation}"]
        status, out, err = call("train", *settings, *chosen_too)
        assert status == 0, err
        sizes.append(json.loads(out)["memory"]["weights"])
    layers = load_model(run).model
    codes = sum(p.numel() for p in layers.parameters() if p.dtype == torch.int8)
    steps = sum(p.nbytes for name, p in layers.named_parameters() if name.endswith(".steps"))
    assert sizes[1] - sizes[0] == 3 * codes - steps
