"""What another process prepares is what this one would read, and so are its errors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loraqa.ahead import _collect, preparing
from loraqa.errors import InputError, LoraqaError
from loraqa.finetune import finetune
from loraqa.squad import write_official
from loraqa.train.data import read_training_data
from loraqa.train.settings import RunSettings, load_settings
from tests.train.conftest import PASSAGES


@pytest.fixture
def chosen(tiny_folder: Path, tmp_path: Path) -> RunSettings:
    write_official(tmp_path / "train.json", PASSAGES, "1.1")
    return load_settings(
        overrides=[
            f"model.source={tiny_folder}",
            "model.dtype=float32",
            f"data.train={tmp_path / 'train.json'}",
            "prompt.max_length=80",
            "prompt.stride=10",
            "lora.rank=4",
            "optimisation.epochs=1",
        ]
    )


def with_data(settings: RunSettings, train: Path) -> RunSettings:
    data = settings.data.model_copy(update={"train": str(train)})
    return settings.model_copy(update={"data": data})


def test_prepared_data_are_those_that_are_read(chosen: RunSettings) -> None:
    expected = read_training_data(chosen)
    with preparing(chosen) as prepared:
        data = prepared()
    assert data.facts == expected.facts
    assert data.encoded.counts == expected.encoded.counts
    assert expected.encoded.counts.windowed > 0
    with np.printoptions(threshold=1_000_000):
        assert repr(data.encoded.trees) == repr(expected.encoded.trees)


def test_the_adapter_has_the_same_bits(chosen: RunSettings, tmp_path: Path) -> None:
    finetune(chosen, tmp_path / "at-once")
    with preparing(chosen) as prepared:
        finetune(chosen, tmp_path / "ahead", data=prepared)
    one, other = (
        (tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes()
        for run in ("at-once", "ahead")
    )
    assert one == other


def test_errors_are_told_as_those_of_reading(chosen: RunSettings, tmp_path: Path) -> None:
    settings = with_data(chosen, tmp_path / "nowhere.json")
    with pytest.raises(InputError) as expected:
        read_training_data(settings)
    with preparing(settings) as prepared, pytest.raises(InputError) as told:
        prepared()
    assert str(told.value) == str(expected.value)


def test_what_the_data_lack_is_noted(
    chosen: RunSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (tmp_path / "train.json").read_text()
    (tmp_path / "train.json").write_text(text.replace('"text": "', '"text": "no such ', 1))
    data = chosen.data.model_copy(update={"on_bad": "skip"})
    with preparing(chosen.model_copy(update={"data": data})) as prepared:
        assert prepared().facts["skipped"] == {"questions": 1}
    assert "loraqa: " in capfd.readouterr().err


def test_a_process_that_is_killed_is_told_of(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(LoraqaError, match=r"status -9; see that there is enough memory"):
        _collect(process, tmp_path)


def test_a_process_that_is_not_waited_for_is_stopped(
    chosen: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(KeyboardInterrupt), preparing(chosen):
        raise KeyboardInterrupt
    assert [process.returncode for process in started] == [-9]


def test_nothing_in_the_working_directory_is_taken_for_a_library(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    with preparing(chosen) as prepared:
        assert prepared().encoded.trees
