"""Checkpoints: complete snapshots of a training. A resumed training gives bit-identical results.

    checkpoints/step-000200/
        adapter/               the adapter in PEFT's format
        optimizer.safetensors  AdamW's running means, by parameter
        state.json             the state of the training (`TrainState`)
        manifest.json          size and SHA-256 of each file above

A checkpoint gets its name when it is complete. Learning rate, order of the data and random numbers
depend only on the seed and on the step and epoch, which are in `state.json`.
"""

import logging
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from loraqa.adapter.evaluation import Evaluation
from loraqa.errors import InputError, LoraqaError
from loraqa.files import read_json, replacing_folder, sha256, write_json, write_tensors
from loraqa.lora.adapter import save_adapter
from loraqa.lora.flat import FlatAdapter

logger = logging.getLogger("loraqa")

ADAPTER = "adapter"
_OPTIMIZER = "optimizer.safetensors"
# AdamW's tensors for each weight, besides the number of its steps.
_MEANS = ("exp_avg", "exp_avg_sq")
_STATE = "state.json"
_MANIFEST = "manifest.json"


@dataclass
class TrainState:
    """The state of a training.

    Attributes:
        step: optimizer steps done.
        epoch, step_in_epoch: the next step.
        baseline: scores before the first step.
        latest, best: scores of the last and of the best evaluation.
        without_gain: evaluations in a row without a better score.
        training_seconds, evaluation_seconds: time spent, over all resumptions.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    baseline: Evaluation | None = None
    latest: Evaluation | None = None
    best: Evaluation | None = None
    without_gain: int = 0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """Return the state that `dataclasses.asdict` described."""
        evaluations = {
            key: values[key] and Evaluation(**values[key]) for key in ("baseline", "latest", "best")
        }
        return cls(**{**values, **evaluations})


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return checkpoints / f"step-{step:06d}"


def step_of(checkpoint: Path | None) -> int:
    """Return the step of a checkpoint, 0 if there is none."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(
    checkpoints: Path,
    model: PreTrainedModel,
    adapter: FlatAdapter,
    optimizer: Optimizer,
    state: TrainState,
) -> Path:
    """Write the checkpoint of `state.step` atomically, and return its folder.

    Raises:
        LoraqaError: the adapter holds a NaN or an infinity.
    """
    _check_finite(adapter, state.step)
    path = checkpoint_folder(checkpoints, state.step)
    with replacing_folder(path) as folder:
        save_adapter(model, folder / ADAPTER, base_name=model.name_or_path or None)
        write_tensors(folder / _OPTIMIZER, _optimizer_tensors(adapter, optimizer))
        write_json(folder / _STATE, asdict(state))
        write_json(folder / _MANIFEST, _manifest(folder))
    return path


def restore(checkpoint: Path, adapter: FlatAdapter, optimizer: Optimizer) -> TrainState:
    """Restore the optimizer, and return the state of the training.

    The adapter must be the checkpoint's (`load_adapter(model, checkpoint / ADAPTER)`).
    """
    saved = load_file(checkpoint / _OPTIMIZER)
    first = next(iter(adapter.weights))
    keys = [key.rpartition(".")[2] for key in saved if key.rpartition(".")[0] == first]
    parts = {key: {name: saved[f"{name}.{key}"] for name in adapter.weights} for key in keys}
    values = {
        key: adapter.join(each) if key in _MEANS else each[first] for key, each in parts.items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {0: values}, "param_groups": groups})
    return TrainState.from_json(read_json(checkpoint / _STATE))


def newest_whole(checkpoints: Path) -> Path | None:
    """Return the newest complete checkpoint. A warning names the damaged ones."""
    for step in reversed(_saved_steps(checkpoints)):
        checkpoint = checkpoint_folder(checkpoints, step)
        try:
            check_whole(checkpoint)
        except InputError as error:
            logger.warning(f"{error} An older one is used.")
        else:
            return checkpoint
    return None


def check_whole(checkpoint: Path) -> None:
    """Raise `InputError` if a file of the checkpoint differs from its manifest."""
    try:
        manifest = read_json(checkpoint / _MANIFEST)
        expected = {name: (file["bytes"], file["sha256"]) for name, file in manifest.items()}
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"The checkpoint {checkpoint} is broken: its manifest cannot be read."
        ) from None
    for name, fingerprint in expected.items():
        path = checkpoint / name
        if not path.is_file():
            raise InputError(f"The checkpoint {checkpoint} is broken: {name} is missing.")
        if _fingerprint(path) != fingerprint:
            raise InputError(f"The checkpoint {checkpoint} is broken: {name} was changed or cut.")


def remove_superseded(checkpoints: Path, state: TrainState, keep: int) -> None:
    """Remove the checkpoints up to `state` that are neither the `keep` newest nor the best.

    Incomplete checkpoints of a killed process are removed, too.
    """
    for half in checkpoints.glob(".step-*"):
        shutil.rmtree(half)
    steps = [step for step in _saved_steps(checkpoints) if step <= state.step]
    for step in steps[:-keep]:
        if state.best is None or step != state.best.step:
            shutil.rmtree(checkpoint_folder(checkpoints, step))


def _saved_steps(checkpoints: Path) -> list[int]:
    """Return the steps that have a checkpoint, complete or not, in order."""
    named = (path for path in checkpoints.glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(map(step_of, named))


def _check_finite(adapter: FlatAdapter, step: int) -> None:
    if adapter.vector.isfinite().all():
        return
    name = next(name for name, weight in adapter.weights.items() if not weight.isfinite().all())
    raise LoraqaError(
        f"After step {step} the adapter holds a NaN or an infinity ({name}) and is not "
        "saved; start again with a lower optimisation.learning_rate."
    )


def _optimizer_tensors(adapter: FlatAdapter, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by weight, as if it had a state for each weight."""
    state = optimizer.state[adapter.vector]
    means = {
        f"{name}.{key}": part
        for key in _MEANS
        for name, part in adapter.split(state[key].cpu()).items()
    }
    return means | {f"{name}.step": state["step"].clone() for name in adapter.weights}


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    fingerprints = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in files}
    return {name: {"bytes": size, "sha256": sha} for name, (size, sha) in fingerprints.items()}


def _fingerprint(path: Path) -> tuple[int, str]:
    return path.stat().st_size, sha256(path)
