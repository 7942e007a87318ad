"""`loraqa.json` comes back as it was written, and a broken one is refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.adapter.conftest import INFO

from loraqa.adapter.info import INFO as INFO_FILE
from loraqa.adapter.info import read_adapter_info, write_adapter_info
from loraqa.errors import InputError
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS


def test_the_info_comes_back(tmp_path: Path) -> None:
    write_adapter_info(tmp_path, INFO)
    assert read_adapter_info(tmp_path) == INFO


@pytest.mark.parametrize("text", ["{}", "[]", '{"base": {}}', "{"])
def test_a_broken_info_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "loraqa.json").write_text(text)
    with pytest.raises(InputError, match=r"loraqa\.json"):
        read_adapter_info(tmp_path)


def test_a_folder_without_info_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loraqa\.json does not exist"):
        read_adapter_info(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ({"sha256": "ab"}, {"sha256": "ab"}, False),
        ({"sha256": "ab"}, {"sha256": "cd"}, True),
        ({"sha256": "ab"}, {"revision": "12"}, False),
        ({"revision": "12"}, {"revision": "34"}, True),
        ({"revision": "12"}, {"revision": "12"}, False),
        ({"revision": "12", "sha256": "ab"}, {"revision": "34", "sha256": "ab"}, False),
        ({}, {"sha256": "ab", "revision": "12"}, False),
    ],
)
def test_bases_differ_in_what_is_known_of_both(
    one: dict[str, str], other: dict[str, str], differ: bool
) -> None:
    unknown = INFO.base.model_copy(update={"sha256": None})
    first, second = (unknown.model_copy(update=known) for known in (one, other))
    assert first.changes(second) == second.changes(first) == ["weights"] * differ


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter folder."""
    save_file({"lora_A": torch.arange(64.0), "lora_B": torch.ones(9)}, tmp_path / TENSORS)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "modules_to_save": None}
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "b"}))
    write_adapter_info(tmp_path, INFO)
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("place", [8, -300, -40, -1])
def test_one_flipped_bit_of_the_tensors_is_found(adapter: Path, place: int) -> None:
    data = bytearray((adapter / TENSORS).read_bytes())
    data[place] ^= 1
    (adapter / TENSORS).write_bytes(data)
    with pytest.raises(InputError, match=f"{adapter} is damaged.*do not fit {TENSORS};"):
        read_adapter_info(adapter)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (ADAPTER_CONFIG, lambda c: c.update(lora_alpha=16)),
        (ADAPTER_CONFIG, lambda c: c.update(use_rslora=True)),
        (INFO_FILE, lambda c: c.update(template="{context} A: {question} B: {answer}")),
        (INFO_FILE, lambda c: c.update(max_length=251)),
        (INFO_FILE, lambda c: c.update(stride=21)),
        (INFO_FILE, lambda c: c.update(max_answer_tokens=33)),
        (INFO_FILE, lambda c: c.update(version="2.0")),
        (INFO_FILE, lambda c: c["base"].update(dtype="float64")),
        (INFO_FILE, lambda c: c["base"].update(sha256="ab13")),
    ],
)
def test_a_changed_value_is_found(adapter: Path, file: str, change: Any) -> None:
    edit(adapter / file, change)
    with pytest.raises(InputError, match=f"damaged, or was changed.*do not fit {file};"):
        read_adapter_info(adapter)


@pytest.mark.parametrize(
    "values",
    [
        {"template": "Answer this!"},
        {"max_length": 0},
        {"stride": -1},
        {"max_answer_tokens": 0},
        {"base": None},
    ],
)
def test_a_value_that_cannot_be_is_named(adapter: Path, values: dict[str, Any]) -> None:
    edit(adapter / INFO_FILE, lambda c: c.update(values))
    named = f"{adapter / INFO_FILE}: .*{next(iter(values))}.*; copy the folder again"
    with pytest.raises(InputError, match=named):
        read_adapter_info(adapter)


def test_what_changes_nothing_is_not_compared(
    adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The base moved, PEFT wrote the configuration anew, a newer version recorded more."""
    more = {
        "base_model_name_or_path": "moved",
        "peft_version": "9",
        "use_dora": False,
        "bias": None,
    }
    edit(adapter / ADAPTER_CONFIG, lambda c: c.update(more))
    edit(adapter / INFO_FILE, lambda c: c["sha256"].update(invented_next_year="ab"))
    edit(adapter / INFO_FILE, lambda c: c["base"].update(source="moved"))
    moved = INFO.base.model_copy(update={"source": "moved"})
    assert read_adapter_info(adapter) == INFO.model_copy(update={"base": moved})
    assert not caplog.records


def test_adapters_of_older_versions_load(adapter: Path) -> None:
    def as_before(values: dict[str, Any]) -> None:
        del values["sha256"], values["base"]["config"], values["base"]["tokenizer_sha256"]

    edit(adapter / INFO_FILE, as_before)
    edit(adapter / ADAPTER_CONFIG, lambda c: c.update(lora_alpha=16))
    assert read_adapter_info(adapter) == INFO


def test_keys_of_newer_versions_are_told(adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(adapter / INFO_FILE, lambda c: c.update(prompt_style="chat"))
    edit(adapter / INFO_FILE, lambda c: c["base"].update(quantised=True))
    edit(adapter / INFO_FILE, lambda c: c.pop("sha256"))
    with caplog.at_level(logging.WARNING, "loraqa"):
        assert read_adapter_info(adapter) == INFO
    assert "does not know: 'base.quantised, prompt_style'; they are ignored" in caplog.text
