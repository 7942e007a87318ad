"""Base models load from folders without the network, and errors say what to do."""

import json
import logging
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import assert_near

from loraqa.errors import InputError
from loraqa.model.gelu import TanhGelu
from loraqa.model.load import choose_device, choose_dtype, load_base


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_folder_is_loaded_as_transformers_loads_it(tiny_folder: Path) -> None:
    model, tokenizer = load_base(tiny_folder, dtype="float32", device="cpu")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    ids = torch.tensor([tokenizer("The old town lies on the river.").input_ids])
    with torch.no_grad():
        assert_near(model(ids).logits, reference(ids).logits, 1e-5)
    assert not model.training


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
    model, _ = load_base(folder, dtype="float64")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        expected = reference(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-9, atol=1e-10)
    activation = model.transformer.h[0].mlp.act
    assert isinstance(activation, TanhGelu) == fused
    assert fused or type(activation) is type(reference.transformer.h[0].mlp.act)


def test_the_same_weights_in_another_precision(tiny_folder: Path) -> None:
    model, _ = load_base(tiny_folder, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_random_weights_say_so_and_are_the_same_each_time(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "loraqa"):
        one, _ = load_base(tiny_folder, random_weights=True)
        state = torch.get_rng_state()
        other, _ = load_base(tiny_folder, random_weights=True)
    assert "RANDOM WEIGHTS" in caplog.text
    assert torch.equal(state, torch.get_rng_state())
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gpt2_has_its_known_size(shared: Path) -> None:
    model, _ = load_base(shared / "gpt2", random_weights=True)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(InputError, match=r"no folder \./no/such/folder; give"):
        load_base("./no/such/folder")


def test_a_folder_without_weights_says_what_to_give(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-weights"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=f"{folder} cannot be loaded .*; give a folder with"):
        load_base(folder)


@pytest.mark.parametrize(
    ("file", "damaged"),
    [
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": []}'),
        ("tokenizer_config.json", "[]"),
        ("config.json", "[]"),
        ("model.safetensors", "cut off"),
    ],
)
def test_damaged_folders_are_told_of_in_one_sentence(
    tiny_folder: Path, tmp_path: Path, file: str, damaged: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    assert (folder / file).exists()
    (folder / file).write_text(damaged)
    with pytest.raises(InputError, match=f"{folder} cannot be loaded .*; give a folder") as told:
        load_base(folder)
    assert "\n" not in str(told.value)


def test_pickled_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_base(folder)


def test_remote_code_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(InputError):
        load_base(folder)


@pytest.mark.usefixtures("no_hub")
def test_a_hub_out_of_reach_leaves_what_was_downloaded(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--example--model" / "snapshots" / "c0ffee"
    shutil.copytree(tiny_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, _ = load_base("example/model", dtype="float32")
    assert model.config.hidden_size == 32


@pytest.mark.parametrize("supported", [True, False])
def test_slow_bfloat16_is_warned_of_and_never_chosen(
    supported: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: supported)
    assert choose_dtype("auto", cpu) == (torch.bfloat16 if supported else torch.float32)
    assert not caplog.records
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert ("a hundred times" in caplog.text) == (not supported)


def test_dtypes_and_devices() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(InputError, match="float16"):
        choose_dtype("float16", cpu)
    with pytest.raises(InputError, match="abacus"):
        choose_device("abacus")
    assert choose_device("cpu") == cpu
