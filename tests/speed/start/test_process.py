"""What another process prepares is what this one would read, and so are its errors."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import numpy as np
import pytest
from loraqa.ahead import Preparation, _prepare, preparing
from tests.conftest import full_disk
from tests.train.conftest import PASSAGES

from loraqa.errors import InputError, LoraqaError
from loraqa.files import read_json, write_json
from loraqa.finetune import finetune
from loraqa.prompt.encode import training_texts
from loraqa.prompt.template import Template
from loraqa.speed.start.words import Texts
from loraqa.squad import Passage, write_official
from loraqa.train.data import load_encoder, read_training_data
from loraqa.train.settings import RunSettings, load_settings


@pytest.fixture
def chosen(tiny_folder: Path, tmp_path: Path) -> RunSettings:
    write_official(tmp_path / "train.json", PASSAGES, "1.1")
    return load_settings(
        overrides=[
            f"model.source={tiny_folder}",
            "model.dtype=float32",
            f"data.train={tmp_path / 'train.json'}",
            "prompt.template=Text: {context}\nQ: {question} A: {answer}",
            "prompt.max_length=80",
            "prompt.stride=10",
            "lora.rank=4",
            "optimisation.epochs=1",
        ]
    )


def asked(settings: RunSettings) -> dict[str, str]:
    template = settings.prompt.template
    return {"source": str(settings.data.train), "on_bad": "stop", "template": template}


def with_data(settings: RunSettings, train: Path) -> RunSettings:
    data = settings.data.model_copy(update={"train": str(train)})
    return settings.model_copy(update={"data": data})


@pytest.fixture(params=["anew", "from the cache", "where nothing can be kept"])
def prepared(
    request: pytest.FixtureRequest,
    chosen: RunSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Preparation]:
    cache = tmp_path / "cache"
    monkeypatch.setenv("LORAQA_CACHE", str(cache))
    encoder = load_encoder(chosen)
    if request.param == "from the cache":
        read_training_data(chosen)
    elif request.param == "where nothing can be kept":
        cache.touch()
    with preparing(chosen) as preparation:
        preparation.encode_with(encoder)
        yield preparation


def test_prepared_data_are_those_that_are_read(prepared: Preparation, chosen: RunSettings) -> None:
    data = prepared()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAQA_CACHE", os.devnull)
        expected = read_training_data(chosen)
    assert data.facts == expected.facts
    assert data.encoded.counts == expected.encoded.counts
    assert expected.encoded.counts.windowed > 0
    with np.printoptions(threshold=1_000_000):
        assert repr(data.encoded.trees) == repr(expected.encoded.trees)


def test_the_adapter_has_the_same_bits(
    prepared: Preparation, chosen: RunSettings, tmp_path: Path
) -> None:
    finetune(chosen, tmp_path / "ahead", data=prepared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAQA_CACHE", os.devnull)
        finetune(chosen, tmp_path / "at-once")
    one, other = (
        (tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes()
        for run in ("at-once", "ahead")
    )
    assert one == other


def test_what_encodes_has_to_be_handed_over(chosen: RunSettings) -> None:
    with preparing(chosen) as prepared, pytest.raises(ValueError, match="encode_with comes first"):
        prepared()


def test_errors_are_told_as_those_of_reading(chosen: RunSettings, tmp_path: Path) -> None:
    settings = with_data(chosen, tmp_path / "nowhere.json")
    with pytest.raises(InputError) as expected:
        read_training_data(settings)

    def prepare() -> None:
        with preparing(settings) as prepared:
            prepared.encode_with(load_encoder(settings))
            prepared()

    with pytest.raises(InputError) as told:
        prepare()
    assert str(told.value) == str(expected.value)


def test_what_the_data_lack_is_noted(
    chosen: RunSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (tmp_path / "train.json").read_text()
    (tmp_path / "train.json").write_text(text.replace('"text": "', '"text": "no such ', 1))
    data = chosen.data.model_copy(update={"on_bad": "skip"})
    with preparing(chosen.model_copy(update={"data": data})) as prepared:
        prepared.encode_with(load_encoder(chosen))
        assert prepared().facts["skipped"] == {"questions": 1}
    assert "loraqa: " in capfd.readouterr().err


def test_an_error_can_be_told_before_the_data_are_asked_for(
    chosen: RunSettings, tmp_path: Path
) -> None:
    with preparing(chosen) as prepared:
        prepared.check()
        prepared.encode_with(load_encoder(chosen))
        prepared()
    (tmp_path / "train.json").write_text("{")
    with preparing(chosen) as prepared:
        prepared._process.wait(timeout=60)
        for tell in (prepared.check, lambda: prepared.encode_with(load_encoder(chosen))):
            with pytest.raises(InputError, match="bad JSON"):
                tell()


def test_what_the_system_refuses_is_told_in_one_sentence(
    chosen: RunSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", os.devnull)
    write_json(tmp_path / "asked.json", asked(chosen))
    write_json(tmp_path / "encoder.json", load_encoder(chosen).to_json())
    handed_over = Event()
    handed_over.set()
    with full_disk():
        _prepare(tmp_path, handed_over)
    told = read_json(tmp_path / "outcome.json")
    assert told["status"] == 1
    assert re.search(r"encoded.safetensors cannot be written \(.*too large.*\)\.$", told["error"])


def test_texts_are_cut_before_there_is_a_tokenizer(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Texts] = []

    def noted(template: Template, passages: Sequence[Passage]) -> Texts:
        made.append(training_texts(template, passages))
        return made[-1]

    class Later(Event):
        def wait(self, _: float | None = None) -> bool:
            (texts,) = made
            assert "words" in vars(texts)
            write_json(tmp_path / "encoder.json", load_encoder(chosen).to_json())
            return True

    monkeypatch.setenv("LORAQA_CACHE", os.devnull)
    monkeypatch.setattr("loraqa.prompt.encode.training_texts", noted)
    write_json(tmp_path / "asked.json", asked(chosen))
    _prepare(tmp_path, Later())
    assert "facts" in read_json(tmp_path / "outcome.json")
    assert len(made) == 1


def test_what_encodes_may_have_another_template(
    chosen: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", os.devnull)
    prompt = chosen.prompt.model_copy(update={"template": "{context} {question}: {answer}"})
    other = chosen.model_copy(update={"prompt": prompt})
    with preparing(chosen) as prepared:
        prepared.encode_with(load_encoder(other))
        trees = prepared().encoded.trees
    assert repr(trees) == repr(read_training_data(other).encoded.trees)


def test_a_process_that_is_killed_is_told_of() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    process.wait()
    with pytest.raises(LoraqaError, match=r"status -9; see that there is enough memory"):
        Preparation(process, TemporaryDirectory()).check()


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


def test_when_this_process_is_killed_the_other_ends_and_leaves_nothing(
    chosen: RunSettings, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text(chosen.to_yaml())
    (tmp_path / "temporary").mkdir()
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from loraqa.ahead import preparing\n"
        "from loraqa.train.settings import load_settings\n"
        f"with preparing(load_settings([Path({str(tmp_path / 'settings.yaml')!r})])):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    # The other process holds standard output open until it ends.
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, env=environment
    )
    assert done.returncode == -9
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_other_process_imports_nothing_large(chosen: RunSettings, tmp_path: Path) -> None:
    write_json(tmp_path / "asked.json", asked(chosen))
    write_json(tmp_path / "encoder.json", load_encoder(chosen).to_json())
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from threading import Event\n"
        "from loraqa.ahead import _prepare\n"
        "handed_over = Event()\n"
        "handed_over.set()\n"
        f"_prepare(Path({str(tmp_path)!r}), handed_over)\n"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "facts" in read_json(tmp_path / "outcome.json")


def test_nothing_in_the_working_directory_is_taken_for_a_library(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    with preparing(chosen) as prepared:
        prepared.encode_with(load_encoder(chosen))
        assert prepared().encoded.trees
