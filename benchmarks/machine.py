"""The rate at which this machine multiplies matrices of the shapes that training uses."""

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.flops import matrices
from loraqa.model.load import load_tokenizer

_REPETITIONS = 10


def matrix_rate(folder: str, tokens: int) -> dict[str, Any]:
    """GFLOP/s of (tokens, in) @ (in, out) for the matrices of a block, and of all together.

    A weight lies as GPT-2 has it, (in, out), or as everybody else, (out, in): the faster counts.
    """
    _, config = load_tokenizer(f"{folder}/model")
    return _rate(config, torch.float32, tokens) | _rate(config, torch.bfloat16, tokens)


def _rate(config: Any, dtype: torch.dtype, tokens: int) -> dict[str, Any]:
    flops, seconds, rates = 0.0, 0.0, {}
    for width, height in matrices(config).values():
        x = torch.randn(tokens, width).to(dtype)
        there, back = torch.randn(width, height).to(dtype), torch.randn(height, width).to(dtype).t()
        fastest = min(_seconds(x, there), _seconds(x, back))
        product = 2 * tokens * width * height
        rates[f"{tokens} x {width} @ {width} x {height}"] = product / fastest / 1e9
        flops += product
        seconds += fastest
    name = str(dtype).removeprefix("torch.")
    return {f"{name}_gflops": flops / seconds / 1e9, f"{name}_gflops_by_shape": rates}


def _seconds(x: Tensor, weight: Tensor) -> float:
    times = [_timed(x, weight) for _ in range(1 + _REPETITIONS)]
    return sorted(times[1:])[_REPETITIONS // 2]


def _timed(x: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    x @ weight
    return time.perf_counter() - start
