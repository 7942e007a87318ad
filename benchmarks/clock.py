"""Measure time, memory, tokens and first gradient of any training with a torch optimizer.

Hooks that torch calls around each optimizer step measure all contenders in the same way. The first
step is a warm-up; its gradient must equal the first contender's, otherwise nothing is timed.
"""

import ctypes
import re
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from transformers import PreTrainedModel

from benchmarks.base import on_a_gpu, wait

# Largest relative error of a gradient, by rounding, against the first contender's.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03}


def measure(
    model: nn.Module, train: Callable[[], float], reference: str | None, precision: str
) -> dict[str, Any]:
    """Run `train` and return its measurements.

    Args:
        model: the model with the adapter to train.
        train: runs optimizer steps, always on the same questions; returns the first step's loss.
        reference: file of the gradient to compare with; it is written if it does not exist.
        precision: a key of `TOLERANCE`.

    Returns:
        `seconds` of each step but the first; `tokens` computed in a step, including padding;
        `loss`, `gradient_norm` and `gradient_error` of the first step; memory in MiB: `peak_mib`
        of the process or GPU, and `growth_mib` since before the first step.
    """
    _forget_earlier_memory()
    clock = _Clock(model, Path(reference) if reference else None, TOLERANCE[precision])
    before = resident_mib()
    try:
        loss = train()
    finally:
        clock.stop()
    return {
        "seconds": clock.laps,
        "tokens": clock.tokens // len(clock.ends),
        "loss": loss,
        **clock.gradient,
        "peak_mib": peak_mib(),
        "growth_mib": peak_mib() - before,
    }


class _Clock:
    """Measure every optimizer step from the clock's creation until `stop`."""

    def __init__(self, model: nn.Module, reference: Path | None, tolerance: float) -> None:
        self.model = model
        self.reference = reference
        self.tolerance = tolerance
        self.ends: list[float] = []
        self.tokens = 0
        self.gradient: dict[str, float] = {}
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
            _transformer(model).get_input_embeddings().register_forward_hook(self._count),
        ]

    def stop(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    @property
    def laps(self) -> list[float]:
        """Seconds from the end of each step to the end of the next."""
        return [end - start for start, end in pairwise(self.ends)]

    def _before_step(self, *_: Any) -> None:
        if self.ends:
            return
        gradient = adapter_gradient(self.model)
        self.gradient["gradient_norm"] = _norm(gradient)
        if self.reference is None:
            return
        if not self.reference.exists():
            save_file(gradient, self.reference)
        error = relative_error(gradient, load_file(self.reference))
        self.gradient["gradient_error"] = error
        if error > self.tolerance:
            raise RuntimeError(
                f"the gradient differs from the first contender's: relative error {error:.2g}"
            )

    def _after_step(self, *_: Any) -> None:
        wait()
        self.ends.append(time.perf_counter())

    def _count(self, _module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self.tokens += inputs[0].numel()


def adapter_gradient(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of every A and B in fp32, by names common to loraqa and PEFT."""
    return {
        _plain_name(name): parameter.grad.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def relative_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the relative error over all matrices together."""
    if actual.keys() != expected.keys():
        raise RuntimeError("the adapters do not have the same matrices")
    return _norm({name: actual[name] - expected[name] for name in expected}) / _norm(expected)


def peak_mib() -> float:
    """Return the peak memory of this process, or of the GPU if it is used."""
    if on_a_gpu():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _forget_earlier_memory() -> None:
    """Reset the GPU's peak, and return freed memory to the system (with glibc's malloc)."""
    if on_a_gpu():
        torch.cuda.reset_peak_memory_stats()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_mib() -> float:
    """Return the current memory of this process or GPU; without /proc, the peak memory."""
    if on_a_gpu():
        return torch.cuda.memory_allocated() / 2**20
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_mib()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20


def _norm(matrices: dict[str, Tensor]) -> float:
    return float(torch.stack([matrix.double().norm() for matrix in matrices.values()]).norm())


def _plain_name(name: str) -> str:
    """Shorten PEFT's `base_model.model.L.lora_A.default.weight` to loraqa's `L.lora_A`."""
    return re.sub(r"^base_model\.model\.|\.default\.weight$", "", name)


def _transformer(model: Any) -> PreTrainedModel:
    """Return the model without PEFT's wrapper."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner
