"""Kernels of our own for a CPU, in C: what PyTorch has no fast operation for.

They are compiled when they are first needed, for the very processor that they run on, and kept on
disk. Who calls them compares them with PyTorch first, and does without them where they do not
compute the same or where no C compiler works.
"""

import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from ctypes import CDLL, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from loraqa.errors import in_a_line
from loraqa.files import cache_folder, replacing

logger = logging.getLogger("loraqa")

_SOURCES = Path(__file__).parent
# No errno and no floating-point exceptions: nobody asks for them, and they forbid vectors.
_FLAGS = shlex.split("-O3 -march=native -fno-math-errno -fno-trapping-math -fPIC -fopenmp")
_CPUINFO = Path("/proc/cpuinfo")
# What tells processors apart there, on x86 and on ARM.
_ABILITIES = (
    *("vendor_id", "cpu family", "model", "model name", "flags"),
    *("CPU implementer", "CPU part", "Features"),
)
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
    """All kernels for a dtype, compiled if they have not been before, and loaded."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    options = [*_FLAGS, f"-D{_DTYPES[dtype]}"]
    kept = cache_folder("kernels") / f"{_key([*compiler, *options])}.so"
    # Not there, or no library.
    with suppress(OSError):
        return CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder:
        library = _compile(compiler, options, Path(folder))
        # Where nothing can be kept, they are compiled each time.
        with suppress(OSError):
            with replacing(kept) as temporary:
                shutil.copyfile(library, temporary)
            return CDLL(str(kept))
        return CDLL(str(library))


def _compile(compiler: Sequence[str], options: Sequence[str], folder: Path) -> Path:
    """Compile all kernels into a library in this folder.

    They are linked to no OpenMP of their own, but find PyTorch's, already loaded: two of them would
    fight for the cores.
    """
    sources = sorted(map(str, _SOURCES.glob("*.c")))
    _run([*compiler, *options, "-c", *sources], folder)
    objects = sorted(map(str, folder.glob("*.o")))
    library = folder / "kernels.so"
    _run([*compiler, "-shared", *objects, "-o", str(library), "-lm"], folder)
    return library


def _key(command: Sequence[str]) -> str:
    """SHA-256 (hex) of all that compiled kernels depend on.

    One that was compiled wrong would else stay so when the compiler is another.
    """
    compiler = Path(shutil.which(command[0]) or command[0])
    changed = compiler.stat().st_mtime if compiler.exists() else None
    sources = [path.read_text() for path in sorted(_SOURCES.iterdir()) if path.is_file()]
    told = [_processor(), str(compiler), changed, command, sources]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _processor() -> list[str]:
    """What the processor can do, as Linux tells it, else which machine this is.

    A home folder may be that of many machines, and a kernel for another one's processor kills.
    """
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    told = {line for line in lines if line.partition(":")[0].strip() in _ABILITIES}
    return sorted(told) or list(platform.uname())


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise OSError(
            f"there is no {command[0]}; with a C compiler (such as gcc) they are faster"
        ) from None
    except subprocess.CalledProcessError as error:
        raise OSError(f"{command[0]} says: {error.stderr}") from error
