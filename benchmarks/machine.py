"""The machine: its hardware, installed versions, and speed of matrix products."""

import time
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from benchmarks.base import Task, device, on_a_gpu, wait
from benchmarks.flops import matrices, tree_work
from loraqa.model.load import choose_dtype
from loraqa.model.source import load_tokenizer
from loraqa.train.environment import environment

_PEERS = ("transformers", "peft", "trl", "accelerate", "datasets")
_REPETITIONS = 10
# On a GPU this many products are timed together, because waiting for one takes longer than one.
_AT_A_TIME = 100

Shape = tuple[int, int, int]
"""Rows of x, and width and height of the matrix."""


def machine(command: str) -> dict[str, Any]:
    """Describe the machine that runs `command`, with the versions of loraqa and its peers."""
    known = environment(device(), torch.float32, command)
    del known["dtype"]
    return {"kind": kind(), **known, **{peer: _version(peer) for peer in _PEERS}}


def kind() -> str:
    """Return the kind of this machine; only figures of the same kind are comparable."""
    if on_a_gpu():
        return "GPU"
    return f"CPU {'with' if fastest_precision() == 'bfloat16' else 'without'} bf16 instructions"


def fastest_precision() -> str:
    """Return the default dtype of `loraqa train` on this machine: "bfloat16" or "float32"."""
    return str(choose_dtype("auto", device())).removeprefix("torch.")


def matrix_rate(task: dict[str, Any]) -> dict[str, Any]:
    """Measure GFLOP/s of only the frozen matrix products of a step on trees, forward and backward.

    Measures fp32 and the task's precision. Of GPT-2's layout of weights, (in, out), and the usual
    one, (out, in), the faster counts.
    """
    spec = Task(**task)
    _, config = load_tokenizer(spec.model_path)
    work = tree_work(spec.trees())
    shapes = Counter((work.tokens, *matrix) for matrix in matrices(config).values())
    for shape in shapes:
        shapes[shape] *= config.num_hidden_layers
    shapes[work.supervised, config.hidden_size, config.vocab_size] = 1
    return _rate(shapes, torch.float32) | _rate(shapes, getattr(torch, spec.precision))


def _rate(shapes: Mapping[Shape, int], dtype: torch.dtype) -> dict[str, Any]:
    """Measure the rate of products of `shapes`, each repeated by its count."""
    flops, seconds, rates = 0.0, 0.0, {}
    for (tokens, width, height), count in shapes.items():
        took = _fastest(tokens, width, height, dtype) + _fastest(tokens, height, width, dtype)
        products = 2 * 2 * tokens * width * height
        rates[f"{tokens} x {width} x {height}"] = products / took / 1e9
        flops += count * products
        seconds += count * took
    name = str(dtype).removeprefix("torch.")
    return {f"{name}_gflops": flops / seconds / 1e9, f"{name}_gflops_by_shape": rates}


def _fastest(tokens: int, width: int, height: int, dtype: torch.dtype) -> float:
    """Measure the seconds of (tokens, width) @ (width, height)."""
    x, there, back = (
        torch.randn(shape, device=device()).to(dtype)
        for shape in ((tokens, width), (width, height), (height, width))
    )
    return min(_seconds(x, there), _seconds(x, back.t()))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _seconds(x: Tensor, weight: Tensor) -> float:
    times = [_timed(x, weight) for _ in range(1 + _REPETITIONS)]
    return sorted(times[1:])[_REPETITIONS // 2]


def _timed(x: Tensor, weight: Tensor) -> float:
    count = _AT_A_TIME if on_a_gpu() else 1
    wait()
    start = time.perf_counter()
    for _ in range(count):
        x @ weight
    wait()
    return (time.perf_counter() - start) / count
