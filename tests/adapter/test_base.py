"""A base model is known by its commit, its weights, its configuration and its tokenizer."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import tiny_model

from loraqa.adapter.base import describe_base, weights_hash
from loraqa.adapter.info import BaseInfo
from loraqa.model.load import load_base
from loraqa.prompt.segments import SegmentTokenizer


def described(source: Path | str, **options: Any) -> BaseInfo:
    model, tokenizer = load_base(source, dtype="float32", device="cpu")
    return describe_base(source, model, SegmentTokenizer.from_transformers(tokenizer), **options)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_base_in_a_folder_is_known_by_its_weights(tiny_folder: Path, tiny_tokenizer: Any) -> None:
    model, _ = load_base(tiny_folder, dtype="bfloat16", device="cpu")
    base = describe_base(tiny_folder, model, SegmentTokenizer.from_transformers(tiny_tokenizer))
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert base.sha256 == hashlib.sha256(weights).hexdigest()
    assert base.dtype == "bfloat16"
    assert Path(base.source).is_absolute()
    assert base.changes(described(tiny_folder)) == []


def test_several_files_of_weights_have_one_hash(tmp_path: Path) -> None:
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, contents in [("a", b"1"), ("b", b"2")]:
        (tmp_path / f"{name}.safetensors").write_bytes(contents)
    first = weights_hash(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"of no weights of the base")
    assert first == weights_hash(tmp_path) is not None
    (tmp_path / "b.safetensors").write_bytes(b"3")
    assert first != weights_hash(tmp_path)


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
    base = described("example/model")
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert (base.source, base.revision) == ("example/model", commit)
    assert base.sha256 == hashlib.sha256(weights).hexdigest()
    assert str(base) == f"example/model (commit {commit}, sha256 {base.sha256})"
    assert base.changes(described(tiny_folder)) == []


def test_random_weights_say_so(tiny_folder: Path) -> None:
    base = described(tiny_folder, random_weights=True)
    assert base.sha256 is None
    assert "random weights" in str(base)


def test_an_incomplete_download_has_no_hash(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_bytes(b"weights")
    assert weights_hash(tmp_path) is None
    (tmp_path / "model-2.safetensors").write_bytes(b"weights")
    assert weights_hash(tmp_path) is not None


def swap_two_ids(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


@pytest.mark.parametrize(
    ("kind", "file", "change", "changed"),
    [
        ("gpt2", "config.json", lambda c: c.update(n_head=2), "n_head was 4, now 2"),
        ("gpt2", "config.json", lambda c: c.update(scale_attn_weights=False), "scale_attn_weights"),
        ("llama", "config.json", lambda c: c["rope_parameters"].update(rope_theta=9.0), "rope_"),
        ("qwen2", "config.json", lambda c: c.update(rms_norm_eps=1.0), "rms_norm_eps was 1e-06"),
        *(
            (kind, "tokenizer.json", change, "tokenizer")
            for kind in ("gpt2", "llama", "qwen2")
            for change in (lambda t: t["model"]["merges"].pop(), swap_two_ids)
        ),
    ],
)
def test_configuration_and_tokenizer_belong_to_a_base(
    kind: str, file: str, change: Any, changed: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model(kind).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    before = described(tmp_path)
    edit(tmp_path / file, change)
    (named,) = before.changes(described(tmp_path))
    assert changed in named
    assert named.startswith("tokenizer" if file == "tokenizer.json" else "configuration (")


def test_rewriting_a_configuration_is_no_change(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    before = described(folder)

    def rewrite(config: dict[str, Any]) -> None:
        old = dict(reversed(config.items()))
        config.clear()
        config.update(old, transformers_version="4.1.0", torch_dtype="bfloat16", use_cache=False)
        config.pop("dtype", None)
        # The default of GPT-2.
        config.pop("scale_attn_weights")

    edit(folder / "config.json", rewrite)
    edit(folder / "tokenizer.json", lambda t: t.update(reversed(t.items())))
    assert before.changes(described(folder)) == []


def test_what_older_and_newer_versions_do_not_record_is_not_compared(tiny_folder: Path) -> None:
    now = described(tiny_folder)
    old = now.model_copy(update={"config": None, "tokenizer_sha256": None})
    newer = now.model_copy(update={"config": {**now.config, "invented_next_year": 1}})
    for one, other in [(old, now), (now, old), (newer, now), (now, newer)]:
        assert one.changes(other) == []
