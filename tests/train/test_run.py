"""The folder of a run is never overwritten, and resumed only as the same run."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.conftest import settings

from loraqa.adapter.evaluation import Evaluation
from loraqa.errors import InputError
from loraqa.train.checkpoint import TrainState
from loraqa.train.environment import environment
from loraqa.train.run import RunDirectory

DATA = {
    "base": {"source": "gpt2", "sha256": None, "revision": "12"},
    "train": {"source": "train.json", "sha256": "ab"},
    "dev": {"source": "d", "sha256": "cd"},
}


def surroundings(*accelerations: str, **changed: Any) -> dict[str, Any]:
    return environment(torch.device("cpu"), torch.float32, "loraqa train", accelerations) | changed


@pytest.fixture
def begun(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.start(settings(), DATA, surroundings())
    return run


def test_settings_come_back(begun: RunDirectory) -> None:
    assert begun.settings() == settings()


def test_a_new_run_needs_a_new_or_an_empty_folder(tmp_path: Path, begun: RunDirectory) -> None:
    RunDirectory(tmp_path / "nowhere").check_usable(settings(), resume=False)
    (tmp_path / "empty").mkdir()
    RunDirectory(tmp_path / "empty").check_usable(settings(), resume=False)
    with pytest.raises(InputError, match=r"run exists already: go on with it \(--resume\)"):
        begun.check_usable(settings(), resume=False)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file exists already"):
        RunDirectory(tmp_path / "file").check_usable(settings(), resume=False)


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        RunDirectory(tmp_path).check_usable(settings(), resume=True)


def test_a_resumed_run_keeps_its_settings(begun: RunDirectory) -> None:
    begun.check_usable(settings(), resume=True)
    begun.check_usable(
        settings(
            "checkpoint.every=9",
            "data.train=moved",
            "optimisation.tokens_per_batch=9",
            "speed.without=all",
        ),
        resume=True,
    )
    with pytest.raises(InputError, match=r"seed was 0, now 1, .*learning_rate was 0.01, now 0.5"):
        begun.check_usable(settings("optimisation.learning_rate=0.5", "seed=1"), resume=True)


def test_overrides_win_over_flags_over_the_settings_file(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(settings("lora.rank=1", "lora.alpha=1", "seed=1").to_yaml())
    flags = {"data.train": "flag.json", "data.dev": None, "lora.alpha": 2, "seed": 2}
    chosen = RunDirectory(tmp_path / "run").choose_settings(config, flags, ["seed=3"], resume=False)
    assert chosen == settings("lora.rank=1", "data.train=flag.json", "lora.alpha=2", "seed=3")


def test_chosen_settings_have_full_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    flags = {"model.source": "base", "data.train": "train.json"}
    chosen = RunDirectory(tmp_path / "run").choose_settings(None, flags, [], resume=False)
    assert chosen.model.source == str(tmp_path / "base")


def test_a_resumed_run_begins_with_its_own_settings(begun: RunDirectory, tmp_path: Path) -> None:
    assert begun.choose_settings(None, {}, [], resume=True) == settings()
    config = tmp_path / "settings.yaml"
    config.write_text("checkpoint: {every: 9, keep: 9}\n")
    chosen = begun.choose_settings(config, {"seed": None}, ["checkpoint.keep=1"], resume=True)
    assert chosen == settings("checkpoint.every=9", "checkpoint.keep=1")


def test_settings_are_only_chosen_for_a_usable_folder(begun: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        begun.choose_settings(begun.settings_file, {}, [], resume=False)
    assert str(caught.value) == (
        f"{begun.path} exists already: go on with it (--resume) or name another folder."
    )
    with pytest.raises(InputError) as caught:
        begun.choose_settings(None, {"seed": 1}, [], resume=True)
    assert str(caught.value) == (
        "A resumed run keeps its settings, but seed was 0, now 1: restore them, or start a new run."
    )
    with pytest.raises(InputError) as caught:
        RunDirectory(tmp_path / "nowhere").choose_settings(None, {}, [], resume=True)
    assert str(caught.value) == (
        f"There is no run to resume in {tmp_path / 'nowhere'}: leave --resume out."
    )


def test_a_resumed_run_may_find_its_base_elsewhere(begun: RunDirectory) -> None:
    moved = settings("model.source=elsewhere", "model.revision=main")
    begun.check_usable(moved, resume=True)
    begun.resume(moved, {**DATA, "base": {**DATA["base"], "source": "elsewhere"}}, surroundings())
    assert begun.settings() == moved


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({**DATA, "train": {"source": "train.json", "sha256": "xx"}}, "The training data"),
        ({**DATA, "base": {"source": "gpt2", "sha256": None, "revision": "34"}}, "The base model"),
        ({name: DATA[name] for name in ("base", "train")}, "The dev data"),
    ],
)
def test_a_resumed_run_keeps_its_data(begun: RunDirectory, data: Any, named: str) -> None:
    begun.resume(
        settings(), {**DATA, "train": {"source": "elsewhere", "sha256": "ab"}}, surroundings()
    )
    with pytest.raises(InputError) as caught:
        begun.resume(settings(), data, surroundings())
    assert str(caught.value) == (
        f"{named} changed since {begun.path} began: resume with what it began with, or start a new "
        "run."
    )


def test_changed_settings_are_written(begun: RunDirectory) -> None:
    lower = settings("optimisation.tokens_per_batch=9")
    begun.resume(lower, DATA, surroundings())
    assert begun.settings() == lower


def test_a_changed_environment_is_reported(
    begun: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="loraqa"):
        begun.resume(settings(), DATA, surroundings(command="another"))
        assert caplog.text == ""
        begun.resume(settings(), DATA, surroundings(threads=99))
    assert (
        f"The run began with threads {torch.get_num_threads()} and goes on with 99" in caplog.text
    )


def test_changed_accelerations_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(settings(), DATA, surroundings("fused-gelu", "cuda-graphs"))
    with caplog.at_level(logging.WARNING, logger="loraqa"):
        run.resume(settings(), DATA, surroundings("fused-gelu", "cuda-graphs"))
        assert caplog.messages == []
        run.resume(settings(), DATA, surroundings("fused-gelu"))
    assert caplog.messages == [
        "The run began with accelerations ['fused-gelu', 'cuda-graphs'] and goes on with "
        "['fused-gelu']: its result may differ by rounding."
    ]


def test_a_fact_that_is_no_longer_recorded_causes_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(settings(), DATA, surroundings(runner="KernelRunner"))
    with caplog.at_level(logging.WARNING, logger="loraqa"):
        run.resume(settings(), DATA, surroundings())
    assert caplog.messages == []


def test_a_run_stopped_before_its_files_were_written_starts_again(begun: RunDirectory) -> None:
    begun.data_file.unlink()
    begun.environment_file.unlink()
    begun.check_usable(settings(), resume=True)
    begun.resume(settings(), DATA, surroundings())
    assert begun.data_file.exists()
    assert begun.environment_file.exists()


def test_metrics_are_cut_back_to_a_checkpoint(begun: RunDirectory) -> None:
    for step in range(1, 5):
        begun.append({"kind": "train", "step": step})
        if step % 2 == 0:
            begun.append({"kind": "evaluation", "step": step})
    state = TrainState(step=4, latest=Evaluation(2, 0.0, 0.0, 1))
    begun.cut_back(state)
    told = [(record["kind"], record["step"]) for record in begun.metrics()]
    assert told == [("train", 1), ("train", 2), ("evaluation", 2), ("train", 3), ("train", 4)]
    begun.cut_back(TrainState())
    assert begun.metrics() == []


@pytest.mark.parametrize("rest", ['{"kind": "tr', "\0\0\0", "\ufffd\n"])
def test_a_crash_may_leave_the_end_of_the_metrics_unwritten(begun: RunDirectory, rest: str) -> None:
    begun.append({"kind": "train", "step": 1})
    with begun.metrics_file.open("a", encoding="utf-8") as file:
        file.write(rest)
    assert begun.metrics() == [{"kind": "train", "step": 1}]
