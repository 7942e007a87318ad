"""A base model is known by its commit and by the hash of its weights."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import tiny_model

from loraqa.adapter.base import describe_base, weights_hash
from loraqa.model.load import load_base


def test_a_base_in_a_folder_is_known_by_its_weights(tiny_folder: Path) -> None:
    model, _ = load_base(tiny_folder, dtype="bfloat16", device="cpu")
    base = describe_base(tiny_folder, model)
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert base.sha256 == hashlib.sha256(weights).hexdigest()
    assert base.dtype == "bfloat16"
    assert Path(base.source).is_absolute()


def test_several_files_of_weights_have_one_hash(tmp_path: Path) -> None:
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, contents in [("a", b"1"), ("b", b"2")]:
        (tmp_path / f"{name}.safetensors").write_bytes(contents)
    model = tiny_model("gpt2")

    def hashed() -> str | None:
        return describe_base(tmp_path, model).sha256

    first = hashed()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"of no weights of the base")
    assert first == hashed() is not None
    (tmp_path / "b.safetensors").write_bytes(b"3")
    assert first != hashed()


def test_a_downloaded_base_is_known_by_commit_and_weights(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c0ffee" * 6 + "abcd"
    snapshot = tmp_path / "models--example--model" / "snapshots" / commit
    shutil.copytree(tiny_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model, _ = load_base("example/model", dtype="float32", device="cpu")
    base = describe_base("example/model", model)
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert (base.source, base.revision) == ("example/model", commit)
    assert base.sha256 == hashlib.sha256(weights).hexdigest()
    assert str(base) == f"example/model (commit {commit}, sha256 {base.sha256})"


def test_random_weights_say_so(tiny_folder: Path) -> None:
    model = tiny_model("gpt2")
    base = describe_base(tiny_folder, model, random_weights=True)
    assert base.sha256 is None
    assert "random weights" in str(base)


def test_an_incomplete_download_has_no_hash(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_bytes(b"weights")
    assert weights_hash(tmp_path) is None
    (tmp_path / "model-2.safetensors").write_bytes(b"weights")
    assert weights_hash(tmp_path) is not None
