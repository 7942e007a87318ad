"""The layers of a model, compiled for training on a GPU.

A small model's step is many small kernels, and launching them takes longer than they do; a compiler
makes few of them. All layers share what is compiled, once for each length of a row. The last layer
stays as it is: how it is computed (see `last_layer.py`) is not for a compiler.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loraqa.errors import in_a_line
from loraqa.lora.layer import lora_layers
from loraqa.model.choose import small_gradients, trainable
from loraqa.model.last_layer import layers_of
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory
from loraqa.model.runner import BucketRunner, Runner

logger = logging.getLogger("loraqa")

# Optimizer steps of a training that saves more than the minute or so that compiling takes, at an
# estimated 20 ms a step.
_WORTH_IT = 2000
# How far gradients may be off, relative: rounding alone makes hundredths of it in bf16.
_TOLERANCE = 0.1
# Of the entries of B: its update counts beside the frozen product, and does not outweigh it.
_SPREAD = 0.01


@explaining_lack_of_memory("while layers were compiled", ADVICE_TO_LOADERS)
def compile_layers(runner: Runner, steps: int) -> bool:
    """Let a model train with compiled layers, if its rows are of few lengths and it works and pays.

    Args:
        runner: of a model with its adapter.
        steps: optimizer steps of the training.

    Returns:
        Whether it does.

    Raises:
        LackOfMemoryError: gradients of small trees do not fit into memory.
    """
    if not isinstance(runner, BucketRunner) or steps < _WORTH_IT:
        return False
    layers = layers_of(runner.model)[:-1]
    logger.info("Compiling the layers, which takes a minute or so.")
    with _as_if_trained(runner.model):
        expected = small_gradients(runner, trainable(runner.model))
        for layer in layers:
            _compile(layer)
        reason = _why_wrong(runner, expected)
    if reason is not None:
        logger.info("Layers are not compiled: %s.", reason)
        for layer in layers:
            del layer.forward
    return reason is None


@contextmanager
def _as_if_trained(model: nn.Module) -> Iterator[None]:
    """Let no B be 0, as all are at first: A's gradient would be 0, and right or wrong not told."""
    update = [layer.lora_B for layer in lora_layers(model).values()]
    before = [matrix.detach().clone() for matrix in update]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for matrix in update:
            matrix.copy_(_SPREAD * torch.randn(matrix.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for matrix, kept in zip(update, before, strict=True):
                matrix.copy_(kept)


def _why_wrong(runner: Runner, expected: Tensor) -> str | None:
    try:
        actual = small_gradients(runner, trainable(runner.model))
    except torch.OutOfMemoryError:
        raise
    # Whatever a compiler comes up with, or the lack of one.
    except Exception as problem:
        return in_a_line(problem)
    error = float((actual - expected).norm() / expected.norm())
    return None if error < _TOLERANCE else f"gradients are {error:.1g} off"


def _compile(layer: nn.Module) -> None:
    layer.forward = partial(_forward, layer.forward, torch.compile(layer.forward, dynamic=False))


def _forward(
    eager: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Only what trains has rows of few lengths: in decoding they grow."""
    return (compiled if torch.is_grad_enabled() else eager)(*args, **kwargs)
