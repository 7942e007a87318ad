"""What stands beside an adapter: enough to answer with it, and a card for people."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from tests.train.conftest import adapted, settings

from loraqa.errors import InputError
from loraqa.model.load import load_base
from loraqa.train.adapter_folder import (
    AdapterInfo,
    BaseInfo,
    describe_base,
    model_card,
    read_adapter_info,
    write_adapter_info,
)
from loraqa.train.checkpoint import Evaluation, TrainState
from loraqa.train.settings import ModelSettings

INFO = AdapterInfo(
    base=BaseInfo(
        source="/models/gpt2", revision=None, dtype="float32", random_weights=False, sha256="ab12"
    ),
    template="{context} Q: {question} A: {answer}",
    max_length=250,
    stride=20,
    max_answer_tokens=32,
    version="1.1",
)
DATA = {"train": {"source": "train.json", "sha256": "cd34", "questions": 11877}}


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


def test_a_base_in_a_folder_is_known_by_its_weights(tiny_folder: Path) -> None:
    model, _ = load_base(tiny_folder, dtype="bfloat16", device="cpu")
    base = describe_base(ModelSettings(source=str(tiny_folder)), model)
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert base.sha256 == hashlib.sha256(weights).hexdigest()
    assert base.dtype == "bfloat16"
    assert Path(base.source).is_absolute()


def test_several_files_of_weights_have_one_hash(tmp_path: Path) -> None:
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, contents in [("a", b"1"), ("b", b"2")]:
        (tmp_path / f"{name}.safetensors").write_bytes(contents)
    model = adapted(settings()).model

    def hashed() -> str | None:
        return describe_base(ModelSettings(source=str(tmp_path)), model).sha256

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
    base = describe_base(ModelSettings(source="example/model"), model)
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert (base.source, base.revision) == ("example/model", commit)
    assert base.sha256 == hashlib.sha256(weights).hexdigest()
    assert str(base) == f"example/model (commit {commit}, sha256 {base.sha256})"


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
    assert first.differs_from(second) == second.differs_from(first) == differ


def test_random_weights_say_so(tiny_folder: Path) -> None:
    model = adapted(settings()).model
    base = describe_base(ModelSettings(source=str(tiny_folder), random_weights=True), model)
    assert base.sha256 is None
    assert "random weights" in str(base)


def test_the_card_holds_scores_settings_base_and_command() -> None:
    chosen = settings("lora.rank=7")
    state = TrainState(
        step=8,
        baseline=Evaluation(0, 1.0, 2.5, 500),
        best=Evaluation(6, 61.25, 72.5, 500),
        training_seconds=90,
    )
    card = model_card(INFO, chosen, state, DATA, "loraqa train --model gpt2")
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "/models/gpt2"
    for expected in [
        "| before training | 1.00 | 2.50 |",
        "| these weights, of step 6 | 61.25 | 72.50 |",
        "500 dev questions",
        "8 optimizer steps (1.5 minutes) on the 11,877 questions",
        "sha256 ab12",
        "cd34",
        "    loraqa train --model gpt2",
        "rank: 7",
    ]:
        assert expected in text


def test_a_card_without_scores_says_why() -> None:
    card = model_card(INFO, settings(), TrainState(step=8), DATA, "loraqa train")
    assert "Not scored" in card
