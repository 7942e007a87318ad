"""C kernels for a CPU, for operations that PyTorch has no fast kernel for.

They are compiled when they are first needed, for the processor at hand, and kept on disk.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from ctypes import CDLL, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from loraqa.cache import find_kept, keep
from loraqa.files import sweep, temporary_folder
from loraqa.speed.trial import UnusableError

_SOURCES = Path(__file__).parent
# Nobody reads errno or floating-point exceptions, and they keep the compiler from using vectors.
_FLAGS = shlex.split("-O3 -march=native -fno-math-errno -fno-trapping-math -fPIC -fopenmp")
_CPUINFO = Path("/proc/cpuinfo")
# The lines that tell processors apart, on x86 and on Arm.
_PROCESSOR_LINES = (
    *("vendor_id", "cpu family", "model", "model name", "flags"),
    *("CPU implementer", "CPU part", "Features"),
)
_DTYPES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16"}


def call(kernel: str, dtype: torch.dtype, *arguments: Tensor | int | float) -> None:
    """Call a kernel with numbers and with contiguous tensors on a CPU, of this dtype or int64.

    Raises:
        UnusableError: the kernel cannot be compiled.
        OSError: the compiled kernel cannot be loaded.
        ValueError: a tensor has another layout, dtype or device than the kernel reads.
    """
    _call(kernel, dtype, arguments)


def call_with_memory(kernel: str, dtype: torch.dtype, *arguments: Tensor | int | float) -> None:
    """Call a kernel that needs memory to work in, and returns 1 if there is none, else 0.

    Raises:
        MemoryError: there is none.
        UnusableError, OSError, ValueError: as for `call`.
    """
    if _call(kernel, dtype, arguments):
        raise MemoryError(f"no memory for {kernel} to work in")


def _call(kernel: str, dtype: torch.dtype, arguments: Sequence[Tensor | int | float]) -> int:
    for argument in arguments:
        if isinstance(argument, Tensor) and not (
            argument.device.type == "cpu"
            and argument.is_contiguous()
            and argument.dtype in (dtype, torch.int64)
        ):
            raise ValueError(f"{kernel} takes contiguous tensors of {dtype} or int64 on a CPU")
    returned: int = getattr(_library(dtype), kernel)(*map(_as_in_c, arguments))
    return returned


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether there are kernels for this device and dtype."""
    return device.type == "cpu" and dtype in _DTYPES


def _as_in_c(argument: Tensor | int | float) -> c_void_p | c_int64 | c_float:
    if isinstance(argument, Tensor):
        return c_void_p(argument.data_ptr())
    return c_int64(argument) if isinstance(argument, int) else c_float(argument)


@cache
def _library(dtype: torch.dtype) -> CDLL:
    """Load all kernels for a dtype; compile them first if they are not in the cache."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    options = [*_FLAGS, f"-D{_DTYPES[dtype]}"]
    key = _key([*compiler, *options])
    if (kept := find_kept("kernels", key, ".so")) and (library := _load(kept)):
        # The process that kept it may have been killed before it removed its folder.
        sweep()
        return library
    with temporary_folder() as folder:
        compiled = _compile(compiler, options, folder)
        kept = keep("kernels", key, ".so", lambda path: shutil.copyfile(compiled, path))
        # If the cache is not writable, kernels are compiled at every start.
        return (_load(kept) if kept else None) or CDLL(str(compiled))


def _load(library: Path) -> CDLL | None:
    """Load a library, or return None where the system does not run programs in its folder."""
    with suppress(OSError):
        return CDLL(str(library))
    return None


def _compile(compiler: Sequence[str], options: Sequence[str], folder: Path) -> Path:
    """Compile all kernels into a library in this folder.

    The library is not linked to OpenMP: it finds PyTorch's, which is already loaded. Two OpenMP
    libraries in one process would fight for the cores.
    """
    sources = sorted(map(str, _SOURCES.glob("*.c")))
    _run([*compiler, *options, "-c", *sources], folder)
    objects = sorted(map(str, folder.glob("*.o")))
    library = folder / "kernels.so"
    _run([*compiler, "-shared", *objects, "-o", str(library), "-lm"], folder)
    return library


def _key(command: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of processor, compiler, options and sources.

    The compiler's date is included, so that a repaired compiler replaces its kernels.
    """
    compiler = Path(shutil.which(command[0]) or command[0])
    changed = compiler.stat().st_mtime if compiler.exists() else None
    sources = [path.read_text() for path in sorted(_SOURCES.iterdir()) if path.is_file()]
    told = [_processor(), str(compiler), changed, command, sources]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _processor() -> list[str]:
    """Return what Linux says about the processor, else the name of this machine.

    Machines may share a home folder, and a kernel for another processor crashes.
    """
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    told = {line for line in lines if line.partition(":")[0].strip() in _PROCESSOR_LINES}
    return sorted(told) or list(platform.uname())


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UnusableError(
            f"there is no C compiler {command[0]!r} here; install one, such as gcc"
        ) from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or "no message").splitlines()[0]
        raise UnusableError(f"the C compiler {command[0]!r} fails ({said})") from error
