"""The folder of a run is never overwritten, and resumed only as the same run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.conftest import settings

from loraqa.adapter.evaluation import Evaluation
from loraqa.errors import InputError
from loraqa.files import one_writer
from loraqa.train.checkpoint import TrainState
from loraqa.train.environment import environment
from loraqa.train.manifest import checkpoint_folder, write_manifest
from loraqa.train.run import RunDirectory
from loraqa.train.settings import differences

BASE = {
    "source": "gpt2",
    "revision": "12",
    "dtype": "float32",
    "random_weights": False,
    "sha256": None,
    "config": {"n_head": 4},
    "tokenizer_sha256": "ef",
}
DATA = {
    "base": BASE,
    "train": {"source": "train.json", "sha256": "ab"},
    "dev": {"source": "d", "sha256": "cd"},
    "template": {"sha256": "12"},
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
    with pytest.raises(InputError, match="file is a file; name a new folder"):
        RunDirectory(tmp_path / "file").check_usable(settings(), resume=False)
    saved(begun)
    begun.settings_file.unlink()
    with pytest.raises(InputError, match="run exists already"):
        begun.check_usable(settings(), resume=False)


def test_a_folder_of_other_files_is_not_called_a_run(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").touch()
    with pytest.raises(InputError) as caught:
        RunDirectory(tmp_path).check_usable(settings(), resume=False)
    assert str(caught.value) == f"{tmp_path} is not empty and holds no run; name another folder."


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
        "A resumed run keeps its settings, but seed was 0, now 1: leave the change out, or start a "
        "new run in another folder."
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
        ({**DATA, "base": BASE | {"revision": "34"}}, "The base model's weights"),
        (
            {**DATA, "base": BASE | {"config": {"n_head": 2}}},
            "The base model's configuration (n_head was 4, now 2)",
        ),
        ({**DATA, "base": BASE | {"tokenizer_sha256": "0"}}, "The base model's tokenizer"),
        ({**DATA, "template": {"sha256": "gh"}}, "The template"),
        ({name: DATA[name] for name in ("base", "train", "template")}, "The dev data"),
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


@pytest.mark.parametrize(
    ("dropout", "effect"),
    [
        (0.0, "its result may differ by rounding."),
        (0.1, "its result differs, because each process draws its own dropout."),
    ],
)
def test_another_number_of_processes_is_reported(
    dropout: float, effect: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(f"lora.dropout={dropout}")
    run = RunDirectory(tmp_path / "run")
    run.start(chosen, DATA, surroundings(processes=2))
    with caplog.at_level(logging.WARNING, logger="loraqa"):
        run.resume(chosen, DATA, surroundings(processes=3))
    assert caplog.messages == [f"The run began with processes 2 and goes on with 3: {effect}"]


def test_the_command_to_resume_starts_as_many_processes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "torchrun --nproc-per-node 4 -m ")
    assert run.command_to_resume == (
        f"torchrun --nproc-per-node 4 -m loraqa train --out {tmp_path} --resume"
    )


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


def damages(text: str) -> dict[str, bytes | None]:
    """Damaged contents of a file, by what happened; None is a missing file."""
    data = text.encode()
    return {
        "missing": None,
        "empty": b"",
        "zeroed": bytes(len(data)),
        "half": data[: len(data) // 2],
        "half zeroed": data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        "no text": b"\xff\xfe\x80" * 50,
        "another kind": b"[1, 2]\n",
        "a text": b"hello\n",
        "nested": b"[" * 100_000,
    }


def put(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


def saved(run: RunDirectory, step: int = 3) -> Path:
    """Write copies of the run's files as a checkpoint does, and return its folder."""
    folder = checkpoint_folder(run.checkpoints, step)
    folder.mkdir(parents=True)
    for name, text in run.texts.items():
        (folder / name).write_text(text)
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("name", ["settings.yaml", "data.json", "environment.json"])
@pytest.mark.parametrize("damage", damages(""))
def test_a_damaged_file_is_replaced_by_the_copy_in_a_checkpoint(
    begun: RunDirectory, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy = saved(begun) / name
    whole = (begun.path / name).read_text()
    put(begun.path / name, damages(whole)[damage])
    again = RunDirectory(begun.path)
    again.check_usable(settings(), resume=True)
    again.resume(settings(), DATA, surroundings())
    assert (begun.path / name).read_text() == whole
    assert again.texts == begun.texts
    assert len(caplog.messages) == 1
    assert "damaged or changed" in caplog.messages[0]
    assert f"{copy} replaces it." in caplog.messages[0]
    with pytest.raises(InputError, match="The training data changed since"):
        again.resume(settings(), {**DATA, "train": {"source": "t", "sha256": "xx"}}, surroundings())


def test_settings_cut_anywhere_come_back(begun: RunDirectory) -> None:
    saved(begun)
    whole = begun.settings_file.read_bytes()
    for end in range(0, len(whole), 7):
        begun.settings_file.write_bytes(whole[:end])
        changed = differences(begun.settings(), settings())
        assert all(key.startswith(("checkpoint.", "speed.")) for key in changed)


def test_changed_settings_are_not_those_of_the_run(
    begun: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    copy = saved(begun) / "settings.yaml"
    edited = settings("lora.rank=5", "checkpoint.keep=9").to_yaml()
    begun.settings_file.write_text(edited)
    # Another process may be training here, so nothing is mended until the folder is locked.
    begun.check_usable(settings(), resume=True)
    assert begun.settings() == settings()
    assert begun.settings_file.read_text() == edited
    assert caplog.messages == []
    with begun.writing(settings(), resume=True):
        begun.resume(settings(), DATA, surroundings())
    assert begun.settings() == settings()
    assert caplog.messages == [
        "The settings file of the run was damaged or changed (lora.rank was 4, now 5); "
        f"{copy} replaces it."
    ]
    assert begun.settings_file.with_name("settings.yaml.damaged").read_text() == edited


@pytest.mark.parametrize("name", ["data.json", "environment.json"])
@pytest.mark.parametrize("damage", damages(""))
def test_a_file_that_is_lost_before_the_first_checkpoint_is_written_again(
    begun: RunDirectory, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (begun.path / name).read_text()
    put(begun.path / name, damages(whole)[damage])
    begun.resume(settings(), DATA, surroundings())
    assert (begun.path / name).read_text() == whole
    lost = f"{begun.path / name} is damaged, and no checkpoint holds a copy; what it said is lost."
    assert caplog.messages == ([] if damage == "missing" else [lost])


@pytest.mark.parametrize(("name", "flipped"), [("base", "basg"), ("sha256", "sha255")])
def test_a_changed_name_in_the_facts_is_damage(
    begun: RunDirectory, name: str, flipped: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = begun.data_file.read_text()
    begun.data_file.write_text(whole.replace(name, flipped, 1))
    begun.resume(settings(), DATA, surroundings())
    assert begun.data_file.read_text() == whole
    assert "is damaged, and no checkpoint holds a copy" in caplog.text


@pytest.mark.parametrize("damage", sorted(damages("").keys() - {"missing", "half"}))
def test_it_is_said_how_to_go_on_without_settings(begun: RunDirectory, damage: str) -> None:
    put(begun.settings_file, damages(begun.settings_file.read_text())[damage])
    with pytest.raises(InputError) as caught:
        begun.choose_settings(None, {}, [], resume=True)
    told = str(caught.value)
    assert told.startswith("The settings of the run are lost, and no checkpoint holds a copy (")
    assert told.endswith(
        f"; write {begun.settings_file} again, or start a new run in another folder."
    )
    assert len(told) < 1000


def test_a_lost_settings_file_with_a_copy_is_resumed(begun: RunDirectory) -> None:
    saved(begun)
    begun.settings_file.unlink()
    assert begun.choose_settings(None, {}, ["checkpoint.keep=7"], resume=True) == settings(
        "checkpoint.keep=7"
    )


def test_what_a_kill_in_the_first_milliseconds_leaves_starts(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    (run.path / ".loraqa-unfinished-12345678").mkdir(parents=True)
    (run.path / ".loraqa-unfinished-12345678" / "settings.yaml").write_text("seed:")
    (run.path / ".lock").touch()
    with pytest.raises(InputError, match="leave --resume out"):
        run.check_usable(settings(), resume=True)
    with run.writing(settings(), resume=False):
        run.start(settings(), DATA, surroundings())
    assert {path.name for path in run.path.iterdir()} == {
        "settings.yaml",
        "data.json",
        "environment.json",
    }


def test_a_kill_between_the_first_files_is_resumed(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        run = RunDirectory(tmp_path / str(count))
        run.start(settings(), DATA, surroundings())
        for file in (run.data_file, run.environment_file)[: 3 - count]:
            file.unlink()
        with RunDirectory(run.path).writing(settings(), resume=True):
            RunDirectory(run.path).resume(settings(), DATA, surroundings())
        assert {path.name for path in run.path.iterdir()} == set(run.texts)


def test_two_trainings_do_not_write_to_one_run(begun: RunDirectory, tmp_path: Path) -> None:
    new = RunDirectory(tmp_path / "new")
    for run, resume in ((begun, True), (new, False)):
        with (
            run.writing(settings(), resume),
            pytest.raises(InputError) as caught,
            RunDirectory(run.path).writing(settings(), resume),
        ):
            pass
        assert str(caught.value) == (
            f"Another process is writing to {run.path}; wait until it has ended, or name another "
            "folder."
        )
    assert not new.path.exists()


def test_a_training_that_began_in_the_meantime_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        RunDirectory(folder).start(settings(), DATA, surroundings())
        with one_writer(folder):
            yield

    monkeypatch.setattr("loraqa.train.run.one_writer", late)
    with pytest.raises(InputError, match="exists already"), run.writing(settings(), resume=False):
        pass


def test_unfinished_files_of_killed_processes_are_removed(begun: RunDirectory) -> None:
    left = [begun.path / ".loraqa-unfinished-1", begun.checkpoints / ".loraqa-unfinished-2"]
    for folder in left:
        (folder / "step-000009").mkdir(parents=True)
    with begun.writing(settings(), resume=True):
        assert not any(folder.exists() for folder in left)


def test_settings_that_change_the_rounding_are_reported(
    begun: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    other = settings("checkpoint.every=9", "checkpoint.keep=9", "speed.without=word-cache")
    begun.resume(other, DATA, surroundings())
    assert caplog.messages == []
    begun.resume(settings("optimisation.tokens_per_batch=99"), DATA, surroundings())
    assert caplog.messages == [
        "The run began with optimisation.tokens_per_batch 120 and goes on with 99: its result may "
        "differ by rounding."
    ]


def test_the_rounding_of_checkpoints_is_what_a_resumed_run_is_compared_with(
    begun: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    saved(begun)
    edited = settings("optimisation.tokens_per_batch=99")
    begun.settings_file.write_text(edited.to_yaml())
    begun.resume(edited, DATA, surroundings())
    assert len(caplog.messages) == 1
    assert "tokens_per_batch 120 and goes on with 99" in caplog.text


def test_settings_that_were_changed_before_the_first_checkpoint_are_told(
    begun: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    begun.resume(begun.settings(), DATA, surroundings())
    assert caplog.messages == []
    whole = begun.settings_file.read_text()
    begun.settings_file.write_text(whole.replace("rank: 4", "rank: 5"))
    again = RunDirectory(begun.path)
    again.resume(again.choose_settings(None, {}, [], resume=True), DATA, surroundings())
    assert caplog.messages == [
        f"{begun.settings_file} was changed since the run began, and no checkpoint holds a copy; "
        "the run goes on with what it says now."
    ]
    # It stays said until the settings are those of the beginning.
    again.resume(again.settings(), DATA, surroundings())
    assert len(caplog.messages) == 2
    begun.settings_file.write_text(whole)
    again.resume(again.settings(), DATA, surroundings())
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("name", ["settings.yaml", "data.json", "environment.json"])
def test_a_folder_in_the_place_of_a_file_is_set_aside(begun: RunDirectory, name: str) -> None:
    saved(begun)
    whole = (begun.path / name).read_text()
    (begun.path / name).unlink()
    (begun.path / name / "inside").mkdir(parents=True)
    again = RunDirectory(begun.path)
    again.check_usable(settings(), resume=True)
    again.resume(settings(), DATA, surroundings())
    assert (begun.path / name).read_text() == whole
    assert (begun.path / f"{name}.damaged" / "inside").is_dir()


def test_a_run_with_an_adapter_is_named_before_anything_is_loaded(
    begun: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="loraqa")
    with begun.writing(settings(), resume=True):
        assert caplog.messages == []
    begun.adapter.mkdir()
    with begun.writing(settings(), resume=True):
        assert [f"{begun.path} has its adapter already" in told for told in caplog.messages] == [
            True
        ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_what_is_kept_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    run = RunDirectory(tmp_path / "a run")
    command = f"loraqa train --out '{run.path}' --resume"

    def told() -> str:
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, logger="loraqa"),
            pytest.raises(error),
            run.telling_what_is_kept(),
        ):
            raise error
        (message,) = caplog.messages
        return message

    assert told() == f"The training has not begun; nothing is kept in {run.path}."
    run.start(settings(), DATA, surroundings())
    assert told() == f"No checkpoint was written yet; start again with `{command}`."
    saved(run, 3)
    saved(run, 12)
    assert told() == f"The checkpoint of step 12 is kept; go on with `{command}`."
    run.settings_file.unlink()
    assert told() == f"The checkpoint of step 12 is kept; go on with `{command}`."


def test_a_bad_line_of_the_metrics_loses_one_line(
    begun: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(1, 5):
        begun.append({"kind": "train", "step": step})
    lines = begun.metrics_file.read_bytes().split(b"\n")
    bad = [b"", b"\0\0", b"\xff", b"3", b"[]", b"null", b'{"kind": "train"}', b'{"step": 2}']
    bad += [lines[1].replace(b"train", b"trajn"), lines[1].replace(b"2", b'"2"'), lines[1][:-1]]
    for line in bad:
        begun.metrics_file.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
        caplog.clear()
        begun.cut_back(TrainState(step=4))
        assert caplog.messages == [
            f"Damaged lines of {begun.metrics_file} are left out: 2.",
            f"{begun.metrics_file} lacks 1 of the 4 steps before this checkpoint, which were "
            "damaged; the training itself lacks nothing.",
        ]
        caplog.clear()
        assert [record["step"] for record in begun.metrics()] == [1, 3, 4]
        assert caplog.messages == []


def test_metrics_that_cannot_be_read_stop_nothing(
    begun: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    begun.metrics_file.mkdir()
    begun.cut_back(TrainState(step=4))
    begun.append({"kind": "train", "step": 5})
    assert begun.metrics() == [{"kind": "train", "step": 5}]
    assert begun.metrics_file.with_name("metrics.jsonl.damaged").is_dir()
    assert caplog.messages[0] == (
        f"The metrics are lost: {begun.metrics_file} cannot be read (Is a directory)."
    )


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
