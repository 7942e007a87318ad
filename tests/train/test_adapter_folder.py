"""What stands beside an adapter: enough to answer with it, and a card for people."""

import hashlib
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
    for name, contents in [("a", b"1"), ("b", b"2")]:
        (tmp_path / f"{name}.safetensors").write_bytes(contents)
    model = adapted(settings()).model
    first = describe_base(ModelSettings(source=str(tmp_path)), model).sha256
    (tmp_path / "b.safetensors").write_bytes(b"3")
    assert first != describe_base(ModelSettings(source=str(tmp_path)), model).sha256


def test_a_base_from_the_hub_is_known_by_its_commit() -> None:
    model = adapted(settings()).model
    model.config._commit_hash = "0123abcd"
    base = describe_base(ModelSettings(source="openai-community/gpt2"), model)
    assert (base.source, base.revision, base.sha256) == ("openai-community/gpt2", "0123abcd", None)
    assert "commit 0123abcd" in str(base)


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
