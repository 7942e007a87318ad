"""Checkpoints: complete snapshots of a training. A resumed training gives bit-identical results.

    checkpoints/step-000200/
        adapter/               the adapter in PEFT's format
        optimizer.safetensors  AdamW's running means, by parameter
        state.json             the state of the training (`TrainState`)
        settings.yaml, data.json, environment.json   copies of the run's files, should it lose them
        manifest.json          size and SHA-256 of each file above (see `manifest`)

A checkpoint gets its name when it is complete. Learning rate, order of the data and random numbers
depend only on the seed and on the step and epoch, which are in `state.json`.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from loraqa.adapter.evaluation import Evaluation
from loraqa.errors import DivergedError, InputError, explain
from loraqa.files import read_json, replacing_folder, write_json, write_tensors
from loraqa.lora.adapter import save_adapter
from loraqa.lora.flat import FlatAdapter
from loraqa.train.manifest import (
    ADAPTER,
    OPTIMIZER,
    STATE,
    check_whole,
    checkpoint_folder,
    saved_steps,
    write_manifest,
)

logger = logging.getLogger("loraqa")

# AdamW's tensors for each weight, besides the number of its steps.
_MEANS = ("exp_avg", "exp_avg_sq")

SaveWeights = Callable[[PreTrainedModel, Path], None]
"""A function that writes the trained weights of a model to a folder."""


def save_lora(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter of a model in PEFT's format, with the name of its base."""
    save_adapter(model, folder, base_name=model.name_or_path or None)


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


def save_checkpoint(
    checkpoints: Path,
    model: PreTrainedModel,
    adapter: FlatAdapter,
    optimizer: Optimizer,
    state: TrainState,
    run_files: Mapping[str, str] = MappingProxyType({}),
    save_weights: SaveWeights = save_lora,
) -> Path:
    """Write the checkpoint of `state.step` atomically, and return its folder.

    Args:
        checkpoints: the folder of the run's checkpoints.
        model: the adapted model.
        adapter: its adapter.
        optimizer: AdamW of the adapter's vector.
        state: the state of the training.
        run_files: texts of the run's files by name, of which the checkpoint gets copies.
        save_weights: writes the trained weights.

    Raises:
        DivergedError: the adapter or the optimizer's state holds a NaN or an infinity.
        OSError: the checkpoint cannot be written; nothing of it is left.
    """
    _check_finite("adapter", adapter, adapter.vector, state.step)
    for key in _MEANS:
        _check_finite(
            f"optimizer's {key}", adapter, optimizer.state[adapter.vector][key], state.step
        )
    path = checkpoint_folder(checkpoints, state.step)
    with replacing_folder(path) as folder:
        save_weights(model, folder / ADAPTER)
        write_tensors(folder / OPTIMIZER, _optimizer_tensors(adapter, optimizer))
        write_json(folder / STATE, asdict(state))
        for name, text in run_files.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_manifest(folder)
    return path


def restore(checkpoint: Path, adapter: FlatAdapter, optimizer: Optimizer) -> TrainState:
    """Restore the optimizer, and return the state of the training.

    The adapter must be the checkpoint's (`load_adapter(model, checkpoint / ADAPTER)`).
    """
    saved = load_file(checkpoint / OPTIMIZER)
    first = next(iter(adapter.weights))
    keys = [key.rpartition(".")[2] for key in saved if key.rpartition(".")[0] == first]
    parts = {key: {name: saved[f"{name}.{key}"] for name in adapter.weights} for key in keys}
    values = {
        key: adapter.join(each) if key in _MEANS else each[first] for key, each in parts.items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {0: values}, "param_groups": groups})
    return TrainState.from_json(read_json(checkpoint / STATE))


def begin_optimizer(adapter: FlatAdapter, optimizer: Optimizer) -> list[Tensor]:
    """Give the optimizer a state if it has none yet, and return its tensors, always in one order.

    A process without the checkpoint receives its content in these tensors.
    """
    vector = adapter.vector
    state = optimizer.state[vector]
    if not state:
        state["step"] = torch.zeros((), device=vector.device)
        state |= {key: torch.zeros_like(vector, requires_grad=False) for key in _MEANS}
    return [state["step"], *(state[key] for key in _MEANS)]


def remove_superseded(checkpoints: Path, step: int, keep: int) -> None:
    """Remove the checkpoints up to a step, except the `keep` newest and the best that they name.

    So a training that has to go on from an older checkpoint finds its best, too. A warning names
    a checkpoint that cannot be removed.
    """
    steps = [saved for saved in saved_steps(checkpoints) if saved <= step]
    best = {_best_step(checkpoint_folder(checkpoints, kept)) for kept in steps[-keep:]}
    for old in steps[:-keep]:
        if old not in best:
            try:
                shutil.rmtree(checkpoint_folder(checkpoints, old))
            except OSError as error:
                logger.warning(f"An old checkpoint cannot be removed: {explain(error)[0]}")


def kept_evaluations(checkpoints: Path, step: int) -> list[Evaluation]:
    """Return the evaluations, up to a step, of the whole checkpoints that were scored, in order."""
    kept = []
    for saved in saved_steps(checkpoints):
        folder = checkpoint_folder(checkpoints, saved)
        with suppress(InputError, OSError):
            check_whole(folder)
            latest = TrainState.from_json(read_json(folder / STATE)).latest
            if latest is not None and latest.step == saved <= step:
                kept.append(latest)
    return kept


def _best_step(checkpoint: Path) -> int | None:
    """Return the step of the best evaluation that a checkpoint knows; None if it is damaged."""
    with suppress(InputError, OSError, TypeError, KeyError, AttributeError):
        best = TrainState.from_json(read_json(checkpoint / STATE)).best
        return None if best is None else best.step
    return None


def _check_finite(what: str, adapter: FlatAdapter, vector: Tensor, step: int) -> None:
    if vector.isfinite().all():
        return
    name = next(name for name, part in adapter.split(vector).items() if not part.isfinite().all())
    raise DivergedError(
        f"After step {step} the {what} holds a NaN or an infinity ({name}) and is not saved; start "
        "again with a lower optimisation.learning_rate."
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
