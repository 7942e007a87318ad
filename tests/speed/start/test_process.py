"""Another process prepares the same data as this one, and its errors are raised here."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import full_disk
from tests.train.conftest import PASSAGES
from tokenizers import Regex, Tokenizer, pre_tokenizers

from loraqa.errors import InputError, LoraqaError
from loraqa.finetuning import finetune
from loraqa.speed.start.process import _DataFromProcess, preparing
from loraqa.speed.start.tokenizer import read_tokenizer
from loraqa.squad import Passage, Question, write_official
from loraqa.train.data import Preparation, TrainingData
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


def changed(settings: RunSettings, group: str, **values: Any) -> RunSettings:
    """Return settings with other values in a group."""
    updated = getattr(settings, group).model_copy(update=values)
    return settings.model_copy(update={group: updated})


def check_same(data: TrainingData, expected: TrainingData) -> None:
    assert data.facts == expected.facts
    assert data.encoded.counts == expected.encoded.counts
    assert data.tokenizer.fingerprint == expected.tokenizer.fingerprint
    with np.printoptions(threshold=1_000_000):
        assert repr(data.encoded.trees) == repr(expected.encoded.trees)


def finetuned(settings: RunSettings, run: Path, **options: Any) -> bytes:
    """Return the adapter of a run."""
    finetune(settings, run, **options)
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(params=["anew", "from the cache", "where nothing can be kept"])
def cache(
    request: pytest.FixtureRequest,
    chosen: RunSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "cache"))
    if request.param == "from the cache":
        with preparing(chosen) as prepare:
            assert prepare(chosen).encoded.trees
        assert list((tmp_path / "cache" / "encoded").iterdir())
    elif request.param == "where nothing can be kept":
        (tmp_path / "cache").touch()


@pytest.mark.usefixtures("cache")
def test_the_process_prepares_the_plain_data(
    chosen: RunSettings, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Preparation()(chosen)
    assert expected.encoded.counts.windowed > 0
    with caplog.at_level(logging.INFO, logger="loraqa"), preparing(chosen) as prepare:
        data = prepare(chosen)
        assert isinstance(data, _DataFromProcess)
        check_same(data, expected)
    assert caplog.messages == []


@pytest.mark.usefixtures("cache")
def test_the_adapter_has_the_same_bits(chosen: RunSettings, tmp_path: Path) -> None:
    with preparing(chosen) as prepare:
        adapter = finetuned(chosen, tmp_path / "ahead", prepare=prepare)
    assert adapter == finetuned(chosen, tmp_path / "plain", prepare=Preparation())


@pytest.fixture
def misleading(chosen: RunSettings, tiny_folder: Path, tmp_path: Path) -> RunSettings:
    """Settings with a model whose tokenizer.json cuts texts into characters.

    transformers' GPT2Tokenizer takes only vocabulary and merges from it, and cuts into words.
    """
    folder = shutil.copytree(tiny_folder, tmp_path / "misleading")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("."), "isolated"), tokenizer.pre_tokenizer]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "GPT2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return changed(chosen, "model", source=str(folder))


@pytest.mark.parametrize("without", [(), ("encoded-cache", "word-cache")])
def test_data_are_encoded_again_if_transformers_loads_another_tokenizer(
    misleading: RunSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    without: tuple[str, ...],
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "cache"))
    chosen = changed(misleading, "speed", without=without)
    with caplog.at_level(logging.INFO, logger="loraqa"), preparing(chosen) as prepare:
        adapter = finetuned(chosen, tmp_path / "ahead", prepare=prepare)
    told = [each for each in caplog.messages if each.startswith("The training data")]
    assert told == [
        "The training data are encoded again, because transformers does not load the tokenizer as "
        "tokenizer.json describes it."
    ]
    assert adapter == finetuned(chosen, tmp_path / "plain", prepare=Preparation())
    with preparing(chosen) as prepare:
        check_same(prepare(chosen), Preparation()(chosen))


def test_an_error_of_a_wrong_guess_is_none_of_the_data(
    misleading: RunSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A long question fits as words, but not as characters."""
    context = "The old town of the river. Its king lives in the old town of the river."
    question = Question("long", "Who is the king of the old town of the river of the old town?", ())
    passage = Passage(f"{context} {context}", (question,))
    write_official(tmp_path / "long.json", [passage], "2.0")
    settings = changed(misleading, "data", train=str(tmp_path / "long.json"))
    expected = Preparation()(settings)
    with caplog.at_level(logging.INFO, logger="loraqa"), preparing(settings) as prepare:
        check_same(prepare(settings), expected)
    assert caplog.messages == [
        "The training data are encoded only now, because tokenizer.json and config.json were not "
        "enough to encode them without transformers."
    ]


@pytest.mark.usefixtures("three_threads")
def test_threads_are_given_back_without_a_use(chosen: RunSettings) -> None:
    with preparing(chosen) as prepare:
        prepare(chosen)
        prepare(chosen)
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 3


def test_the_misleading_tokenizer_gives_other_tokens(misleading: RunSettings) -> None:
    """The test above relies on this."""
    loaded = Preparation().encoder(misleading).tokenizer
    guessed = read_tokenizer(Path(misleading.model.source))
    one, other = (tokenizer.encode([" the old"])[0].ids for tokenizer in (loaded, guessed))
    assert len(one) < len(other)


def test_data_are_encoded_here_if_tokenizer_json_is_missing(
    shared: Path, chosen: RunSettings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = changed(chosen, "model", source=str(shared / "gpt2"))
    with caplog.at_level(logging.INFO, logger="loraqa"), preparing(settings) as prepare:
        check_same(prepare(settings), Preparation()(settings))
    assert caplog.messages == [
        "The training data are encoded only now, because tokenizer.json and config.json were not "
        "enough to encode them without transformers."
    ]


def test_without_the_process_this_one_prepares_the_data(
    chosen: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    for without in ("preparing-process", "all"):
        settings = changed(chosen, "speed", without=(without,))
        with preparing(settings) as prepare:
            check_same(prepare(settings), Preparation()(chosen))


def test_errors_equal_those_of_reading_here(chosen: RunSettings, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(InputError) as expected:
        Preparation()(chosen)

    def prepare_and_wait() -> None:
        with preparing(chosen) as prepare:
            _ = prepare(chosen).encoded

    with pytest.raises(InputError) as told:
        prepare_and_wait()
    assert str(told.value) == str(expected.value)


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("model", {"source": "./nowhere"}),
        ("data", {"train": "nowhere.json"}),
        ("data", {"dev": "nowhere.json"}),
        ("speed", {"without": ("word-cash",)}),
    ],
)
def test_no_process_is_started_for_settings_that_cannot_work(
    chosen: RunSettings, monkeypatch: pytest.MonkeyPatch, group: str, values: dict[str, Any]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(InputError), preparing(changed(chosen, group, **values)):
        pass


def test_the_notices_of_the_process_are_shown(
    chosen: RunSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (tmp_path / "train.json").read_text()
    (tmp_path / "train.json").write_text(text.replace('"text": "', '"text": "no such ', 1))
    settings = changed(chosen, "data", on_bad="skip")
    with preparing(settings) as prepare:
        assert prepare(settings).facts["skipped"] == {"questions": 1}
    assert "loraqa: " in capfd.readouterr().err


def test_an_early_error_is_raised_before_the_data_are_used(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.json").write_text("{")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with preparing(chosen) as prepare:
        while not list((tmp_path / "temporary").glob("*/outcome.json")):
            time.sleep(0.05)
        with pytest.raises(InputError, match="bad JSON"):
            prepare(chosen)


def test_a_full_disk_is_reported_in_one_sentence(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", os.devnull)
    many_windows = Passage("It grinds. " * 500, (Question("a", "Why?"),))
    write_official(tmp_path / "train.json", [many_windows], "2.0")
    # There is room for the settings, but not for the trees.
    with full_disk(room=3000), preparing(chosen) as prepare:
        data = prepare(chosen)
        with pytest.raises(LoraqaError) as told:
            _ = data.facts
    assert type(told.value) is LoraqaError
    assert re.search(r"encoded.safetensors cannot be written \(.*too large.*\)\.$", str(told.value))


def test_a_killed_process_is_reported(
    chosen: RunSettings, started: list[subprocess.Popen[bytes]]
) -> None:
    with preparing(chosen) as prepare:
        (process,) = started
        process.kill()
        process.wait()
        with pytest.raises(LoraqaError) as told:
            prepare(chosen)
    assert str(told.value) == (
        "The process that prepared the training data ended with status -9; see that there is "
        "enough memory, and start again."
    )


def test_a_signal_to_all_processes_does_not_stop_the_preparing_one(
    chosen: RunSettings, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "train.json").unlink()
    os.mkfifo(tmp_path / "train.json")
    with preparing(chosen) as prepare:
        # Opening waits until the process reads.
        with (tmp_path / "train.json").open("w") as pipe:
            started[0].terminate()
            pipe.write("{")
        with pytest.raises(InputError, match="bad JSON"):
            _ = prepare(chosen).facts


@pytest.fixture
def three_threads() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("fails", [False, True])
def test_pytorch_leaves_a_core_to_the_process_until_it_ends(
    chosen: RunSettings, tmp_path: Path, fails: bool
) -> None:
    if fails:
        # The process waits at this pipe, and fails only when it is written to.
        (tmp_path / "train.json").unlink()
        os.mkfifo(tmp_path / "train.json")
    with preparing(chosen) as prepare:
        data = prepare(chosen)
        assert torch.get_num_threads() == 2
        if fails:
            (tmp_path / "train.json").write_text("{")
            with pytest.raises(InputError, match="bad JSON"):
                _ = data.facts
        else:
            _ = data.facts
        assert torch.get_num_threads() == 3


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started."""
    processes: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return processes


def test_a_process_that_is_not_waited_for_is_stopped(
    chosen: RunSettings, started: list[subprocess.Popen[bytes]]
) -> None:
    with pytest.raises(KeyboardInterrupt), preparing(chosen):
        raise KeyboardInterrupt
    assert [process.returncode for process in started] == [-9]


@pytest.mark.parametrize("when", ["while it works", "when the data are there"])
def test_when_this_process_is_killed_the_other_ends_and_leaves_nothing(
    chosen: RunSettings, tmp_path: Path, when: str
) -> None:
    (tmp_path / "settings.yaml").write_text(chosen.to_yaml())
    (tmp_path / "temporary").mkdir()
    code = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from loraqa.speed.start.process import preparing\n"
        "from loraqa.train.settings import load_settings\n"
        f"with preparing(load_settings([Path({str(tmp_path / 'settings.yaml')!r})])):\n"
        f"    while {when == 'when the data are there'} and not list(\n"
        f"        Path({str(tmp_path / 'temporary')!r}).glob('*/outcome.json')\n"
        "    ):\n"
        "        time.sleep(0.05)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    # The other process holds standard error open until it ends.
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, timeout=60, env=environment
    )
    assert done.returncode == -9
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_process_imports_neither_pytorch_nor_transformers(
    chosen: RunSettings, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text(chosen.to_yaml())
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from loraqa.speed.start.process import _prepare\n"
        f"outcome = _prepare(Path({str(tmp_path)!r}))\n"
        "assert outcome['facts']\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_file_in_the_working_directory_is_not_taken_for_a_library(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    with preparing(chosen) as prepare:
        assert prepare(chosen).encoded.trees
