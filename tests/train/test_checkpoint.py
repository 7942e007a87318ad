"""Checkpoints are complete or absent, and a broken one is never used."""

import errno
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.conftest import adapted, settings

from loraqa.adapter.evaluation import Evaluation
from loraqa.errors import FileError, InputError, LoraqaError
from loraqa.files import read_json, write_json
from loraqa.lora.flat import FlatAdapter
from loraqa.train import checkpoint as checkpoints
from loraqa.train import manifest
from loraqa.train.checkpoint import TrainState, remove_superseded, restore, save_checkpoint
from loraqa.train.manifest import check_whole, newest_whole, saved_steps

STATE = TrainState(
    step=7,
    epoch=1,
    step_in_epoch=3,
    baseline=Evaluation(0, 0.0, 1.5, 10),
    latest=Evaluation(6, 10.0, 20.1, 10),
    best=Evaluation(3, 20.0, 30.25, 10),
    without_gain=1,
    training_seconds=12.5,
)


def trained() -> tuple[torch.nn.Module, FlatAdapter, torch.optim.Optimizer]:
    """A tiny model after an optimizer step on random gradients."""
    model = adapted(settings()).model
    adapter = FlatAdapter(model)
    optimizer = torch.optim.AdamW([adapter.vector], fused=True)
    torch.manual_seed(0)
    adapter.gradient.normal_()
    optimizer.step()
    return model, adapter, optimizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints"), *trained(), STATE)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, for tests that damage it."""
    return Path(shutil.copytree(whole, tmp_path / whole.name))


def test_a_checkpoint_has_a_manifest_of_its_files(whole: Path) -> None:
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert whole.name == "step-000007"
    assert files == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    assert set(read_json(whole / "manifest.json")) == files - {"manifest.json"}
    check_whole(whole)


def test_optimizer_and_state_come_back(whole: Path) -> None:
    _, adapter, optimizer = trained()
    fresh = torch.optim.AdamW([adapter.vector], fused=True)
    assert restore(whole, adapter, fresh) == STATE
    before, after = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert before.keys() == after.keys()
    for index, values in before.items():
        assert values.keys() == after[index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in values.items():
            assert torch.equal(value, after[index][key])
            assert value.dtype == after[index][key].dtype


def test_the_file_of_the_optimizer_names_the_parameters(whole: Path) -> None:
    names = {name for name, p in trained()[0].named_parameters() if p.requires_grad}
    keys = load_file(whole / "optimizer.safetensors").keys()
    assert {key.rpartition(".")[0] for key in keys} == names


@pytest.mark.parametrize(
    "name",
    [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    ],
)
def test_a_missing_truncated_or_changed_file_is_detected(copy: Path, name: str) -> None:
    file = copy / name
    data = file.read_bytes()
    rng = random.Random(name)
    broken = [data[:-1], data + b" ", b"", b"{}" * 2]
    for _ in range(20):
        place = rng.randrange(len(data))
        broken.append(
            data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        )
    for contents in broken:
        file.write_bytes(contents)
        if name == "manifest.json" and contents.strip() == data.strip():
            continue
        with pytest.raises(InputError):
            check_whole(copy)
    file.unlink()
    with pytest.raises(InputError, match=r"is missing|does not exist"):
        check_whole(copy)


@pytest.mark.parametrize("written", ["[]", "3", '{"state.json": 3}', '{"state.json": {}}'])
def test_a_malformed_manifest_is_refused(copy: Path, written: str) -> None:
    (copy / "manifest.json").write_text(written)
    with pytest.raises(InputError, match="its manifest cannot be read"):
        check_whole(copy)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "write_manifest", fail)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path, *trained(), STATE)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_not_taken_for_checkpoints(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / ".step-000009.half")
    shutil.copytree(copy, copy.parent / "step-last")
    (copy.parent / "step-000008").mkdir()
    assert newest_whole(copy.parent) == copy
    assert newest_whole(copy.parent / "nowhere") is None


def test_a_checkpoint_that_cannot_be_removed_stops_nothing(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copy.parent / "step-000001").write_text("a file, not a folder")
    remove_superseded(copy.parent, STATE.step, keep=1)
    assert caplog.messages == [
        f"An old checkpoint cannot be removed: {copy.parent / 'step-000001'}: Not a directory."
    ]


@pytest.mark.parametrize("written", ["{}", '{"state.json": {"bytes": 0, "sha256": ""}}'])
def test_a_manifest_vouches_only_for_all_files(copy: Path, written: str) -> None:
    (copy / "manifest.json").write_text(written)
    with pytest.raises(InputError, match="is broken: its manifest does not list adapter/adapter_c"):
        check_whole(copy)


def test_a_newer_checkpoint_that_cannot_be_read_is_passed_over(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors of the disk, and a file in the place of a folder."""
    for step, problem in ((8, errno.EIO), (9, errno.EACCES)):
        shutil.copytree(copy, copy.parent / f"step-00000{step}" / str(problem))
    (copy.parent / "step-000010").touch()
    read = manifest.read_json

    def failing(path: Path) -> object:
        if path.parent.name in ("step-000008", "step-000009"):
            (inside,) = path.parent.iterdir()
            error = OSError(int(inside.name), os.strerror(int(inside.name)))
            raise FileError(error, path, "read")
        return read(path)

    monkeypatch.setattr(manifest, "read_json", failing)
    assert newest_whole(copy.parent) == copy
    assert [message.partition(" cannot be read ")[2] for message in caplog.messages] == [
        "(Not a directory). This checkpoint is not used.",
        "(Permission denied); see who may use it (`ls -l`). This checkpoint is not used.",
        "(Input/output error); see whether its disk is failing. This checkpoint is not used.",
    ]


def test_it_is_said_that_no_checkpoint_is_whole(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "state.json").unlink()
    assert newest_whole(copy.parent) is None
    assert caplog.messages == [
        f"The checkpoint {copy} is broken: state.json is missing. This checkpoint is not used.",
        f"{copy.parent} holds no whole checkpoint, so the training STARTS AGAIN FROM STEP 0.",
    ]


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_optimizer_that_is_not_finite_is_not_saved(
    tmp_path: Path, key: str, value: float
) -> None:
    model, adapter, optimizer = trained()
    optimizer.state[adapter.vector][key][-1] = value
    last = list(adapter.weights)[-1]
    with pytest.raises(LoraqaError) as caught:
        save_checkpoint(tmp_path, model, adapter, optimizer, STATE)
    assert str(caught.value) == (
        f"After step 7 the optimizer's {key} holds a NaN or an infinity ({last}) and is not saved; "
        "start again with a lower optimisation.learning_rate."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_holds_copies_of_the_files_of_the_run(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, *trained(), STATE, {"settings.yaml": "größer: 1\n"})
    copied = manifest.newest_copy(tmp_path, "settings.yaml")
    assert copied == path / "settings.yaml"
    assert copied.read_text(encoding="utf-8") == "größer: 1\n"
    check_whole(path)
    copied.write_text("changed")
    assert manifest.newest_copy(tmp_path, "settings.yaml") is None
    with pytest.raises(InputError, match="settings.yaml was changed or cut"):
        check_whole(path)


def test_checkpoints_of_later_steps_are_not_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3, 5, 6, 7, 9):
        write_state(tmp_path / f"step-{step:06d}", best=3)
    remove_superseded(tmp_path, 7, keep=2)
    assert saved_steps(tmp_path) == [3, 6, 7, 9]


def test_each_kept_checkpoint_keeps_the_best_that_it_knows(tmp_path: Path) -> None:
    """A training may have to go on from any of them."""
    for step, best in ((2, 2), (4, 2), (6, 6), (8, 6)):
        write_state(tmp_path / f"step-{step:06d}", best)
    remove_superseded(tmp_path, 6, keep=2)
    assert saved_steps(tmp_path) == [2, 4, 6, 8]
    (tmp_path / "step-000006" / "state.json").write_text("damaged")
    remove_superseded(tmp_path, 6, keep=1)
    assert saved_steps(tmp_path) == [6, 8]


def write_state(checkpoint: Path, best: int) -> None:
    """Write the state of a checkpoint, with the step of its best evaluation."""
    checkpoint.mkdir()
    write_json(checkpoint / "state.json", asdict(TrainState(best=Evaluation(best, 1.0, 2.0, 10))))
