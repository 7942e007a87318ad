"""Kernels of our own for a CPU, in C: what PyTorch has no fast operation for.

They are compiled when they are first needed, in a tenth of a second, for the very processor that
they run on. Who calls them compares them with PyTorch first, and does without them where they do
not compute the same or where no C compiler works.
"""

import logging
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import CDLL, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from loraqa.errors import in_a_line

logger = logging.getLogger("loraqa")

_SOURCES = Path(__file__).parent
# No errno and no floating-point exceptions: nobody asks for them, and they forbid vectors.
_FLAGS = shlex.split("-O3 -march=native -fno-math-errno -fno-trapping-math -fPIC -fopenmp")
_DTYPES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16"}


def call(kernel: str, dtype: torch.dtype, *arguments: Tensor | int | float) -> None:
    """Call a kernel with contiguous tensors of this dtype or of int64 on a CPU, and with numbers.

    Raises:
        OSError: it cannot be compiled or loaded.
        ValueError: it would read tensors as what they are not.
    """
    for argument in arguments:
        if isinstance(argument, Tensor) and not (
            argument.device.type == "cpu"
            and argument.is_contiguous()
            and argument.dtype in (dtype, torch.int64)
        ):
            raise ValueError(f"{kernel} takes contiguous tensors of {dtype} or int64 on a CPU")
    getattr(_library(dtype), kernel)(*map(_as_in_c, arguments))


def works(
    what: str, check: Callable[[torch.dtype], None], device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether there is a kernel for this device and dtype that passes a check.

    Args:
        what: it computes, for the line that says why it is not used.
        check: calls it, and raises any exception where it is wrong. It is asked once, with
            gradients on, whatever the caller's mode and default device.
        device, dtype: of the tensors to come.
    """
    return device.type == "cpu" and dtype in _DTYPES and _passes(what, check, dtype)


@cache
def _passes(what: str, check: Callable[[torch.dtype], None], dtype: torch.dtype) -> bool:
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            check(dtype)
    # Whatever comes of a compiler, or the lack of one.
    except Exception as problem:
        logger.info("%s by PyTorch's slower operations: %s.", what, in_a_line(problem))
        return False
    return True


def _as_in_c(argument: Tensor | int | float) -> c_void_p | c_int64 | c_float:
    if isinstance(argument, Tensor):
        return c_void_p(argument.data_ptr())
    return c_int64(argument) if isinstance(argument, int) else c_float(argument)


@cache
def _library(dtype: torch.dtype) -> CDLL:
    """All kernels, compiled for a dtype, and loaded.

    They are linked to no OpenMP of their own, but find PyTorch's, already loaded: two of them would
    fight for the cores.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    sources = sorted(map(str, _SOURCES.glob("*.c")))
    with tempfile.TemporaryDirectory() as folder:
        _run([*compiler, *_FLAGS, f"-D{_DTYPES[dtype]}", "-c", *sources], folder)
        objects = sorted(map(str, Path(folder).glob("*.o")))
        library = Path(folder) / "kernels.so"
        _run([*compiler, "-shared", *objects, "-o", str(library), "-lm"], folder)
        return CDLL(str(library))


def _run(command: list[str], folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise OSError(
            f"there is no {command[0]}; with a C compiler (such as gcc) they are faster"
        ) from None
    except subprocess.CalledProcessError as error:
        raise OSError(f"{command[0]} says: {error.stderr}") from error
