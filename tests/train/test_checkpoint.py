"""Checkpoints are complete or absent, and a broken one is never used."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.conftest import adapted, settings

from loraqa.adapter.evaluation import Evaluation
from loraqa.errors import InputError
from loraqa.files import read_json
from loraqa.lora.flat import FlatAdapter
from loraqa.train import checkpoint as checkpoints
from loraqa.train.checkpoint import (
    TrainState,
    check_whole,
    newest_whole,
    remove_superseded,
    restore,
    save_checkpoint,
)

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


@pytest.mark.parametrize("manifest", ["[]", "3", '{"state.json": 3}', '{"state.json": {}}'])
def test_a_malformed_manifest_is_refused(copy: Path, manifest: str) -> None:
    (copy / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="its manifest cannot be read"):
        check_whole(copy)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "_manifest", fail)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path, *trained(), STATE)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_not_taken_for_checkpoints(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / ".step-000009.half")
    shutil.copytree(copy, copy.parent / "step-last")
    (copy.parent / "step-000008").mkdir()
    assert newest_whole(copy.parent) == copy
    assert newest_whole(copy.parent / "nowhere") is None


def test_half_written_checkpoints_are_removed_with_superseded_ones(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / ".step-000009.half")
    remove_superseded(copy.parent, STATE, keep=1)
    assert list(copy.parent.iterdir()) == [copy]


def test_checkpoints_of_later_steps_are_not_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3, 5, 6, 7, 9):
        (tmp_path / f"step-{step:06d}").mkdir()
    remove_superseded(tmp_path, STATE, keep=2)
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == [3, 6, 7, 9]
