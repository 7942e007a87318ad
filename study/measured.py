"""What a training needs, and how good it becomes: its parameters, memory, time, disk and scores."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from loraqa.answer.evaluate import evaluate
from loraqa.files import temporary_folder
from loraqa.finetuning.ready import Ready, get_ready
from loraqa.lora.adapt import parameter_counts
from loraqa.model.memory import forget_peak_memory, peak_memory
from loraqa.prompt.plan import ChosenSteps
from loraqa.squad import QADataset
from loraqa.train.checkpoint import SaveWeights
from loraqa.train.environment import environment
from loraqa.train.loop import train
from loraqa.train.manifest import ADAPTER
from loraqa.train.run import Record, RunDirectory
from loraqa.train.settings import RunSettings
from loraqa.train.stopping import StoppedError
from study.methods import Method

# The optimizer's state is made in the first step, and there in the second.
_MEASURED_STEPS = 3


def train_and_measure(
    settings: RunSettings, method: Method, dev: QADataset, out: Path, command: str
) -> dict[str, Any]:
    """Train without scoring, answer the dev questions with the last weights, and measure.

    Args:
        settings: the settings of the training, which writes no other checkpoint than its last.
        method: what is trained.
        dev: the questions to score.
        out: a folder, in which nothing is left.
        command: the command that does this.

    Returns:
        Plain JSON values: `parameters`, the `memory` and the size on `disk` in bytes by part,
        `steps`, `training_seconds`, `seconds_per_step` (the median), `loss` of each step, the
        `answers` with exact match and F1 of each question, and the `environment`.

    Raises:
        StoppedError: the user stopped it; nothing is kept.
        LoraqaError, OSError: as for `finetune`.
    """
    ready = get_ready(settings, choose_weights=method.choose_weights)
    model, records = ready.runner.model, list[Record]()
    with _begun_run(settings, out) as run:
        train(
            ready.runner,
            ready.plan,
            settings,
            run,
            on_record=records.append,
            save_weights=method.save_weights,
        )
        (checkpoint,) = run.checkpoints.iterdir()
        disk = {"weights": _size(checkpoint / ADAPTER), "checkpoint": _size(checkpoint)}
    seconds = [record["seconds"] for record in records]
    counts = parameter_counts(model)
    evaluated = evaluate(ready.reader, dev)
    return {
        "parameters": {"trained": counts.trainable, "total": counts.total},
        "memory": _memory(ready, settings, method.save_weights, out),
        "disk": disk,
        "steps": len(records),
        "training_seconds": sum(seconds),
        # The first step compiles kernels, and says little about the others.
        "seconds_per_step": median(seconds[1:] or seconds),
        "loss": [round(record["loss"], 4) for record in records],
        "answers": {
            id: [int(score.exact_match), round(score.f1, 4)]
            for id, score in evaluated.scores.by_question.items()
        },
        "environment": environment(model.device, model.dtype, command, ready.accelerations),
    }


@contextmanager
def _begun_run(settings: RunSettings, out: Path) -> Iterator[RunDirectory]:
    """Yield a run in a temporary folder."""
    with temporary_folder(out) as folder:
        run = RunDirectory(folder)
        run.start(settings, {}, {})
        try:
            yield run
        except StoppedError as stopped:
            told = f"Stopped by {stopped.received.name}; the same command goes on with this one."
            raise StoppedError(told, stopped.received) from None


def _memory(
    ready: Ready, settings: RunSettings, save_weights: SaveWeights, out: Path
) -> dict[str, int]:
    """Return the bytes of weights, gradients, optimizer state and activations.

    The first three are those of the tensors. The activations are what a step took at its peak
    besides gradients and optimizer state; they include all that lives within a step only. The step
    is the one with the largest micro-batch. It is trained further, so the scores come first.
    """
    model, device = ready.runner.model, ready.runner.model.device
    step = max(ready.plan.sample(), key=lambda step: max(map(ready.plan.size, step)))
    found: dict[str, int] = {}

    def measure(optimizer: Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        states = [each for state in optimizer.state.values() for each in state.values()]
        found["gradients"] = sum(weight.grad.nbytes for weight in weights)
        found["optimizer"] = sum(state.nbytes for state in states)
        found["peak"] = peak_memory(device)

    # The gradients of the training before would be given back during the step.
    model.zero_grad(set_to_none=True)
    _release_freed_memory()
    trial = settings.optimisation.model_copy(update={"epochs": 1, "max_steps": None})
    settings = settings.model_copy(update={"optimisation": trial})
    forget_peak_memory(device)
    before = peak_memory(device)
    hook = register_optimizer_step_post_hook(measure)
    try:
        with _begun_run(settings, out) as run:
            steps = ChosenSteps([step] * _MEASURED_STEPS)
            train(ready.runner, steps, settings, run, save_weights=save_weights)
    finally:
        hook.remove()
    growth = found.pop("peak") - before
    return {
        "weights": sum(weight.nbytes for weight in model.parameters()),
        **found,
        "activations": max(growth - found["gradients"] - found["optimizer"], 0),
    }


def _release_freed_memory() -> None:
    """Give what was freed back to the system (with glibc's malloc), so that it is not used again.

    A step that used it would seem to take less.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
