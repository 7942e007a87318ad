"""GPT-2's GELU in one pass over memory on a CPU, by `gelu.c`.

PyTorch's takes 4% of the time in answering and 6 to 7% of a training step in bf16, most of it for
the hyperbolic tangent; this one takes a quarter of that. It is compiled when it is first needed,
which takes a tenth of a second, for the very processor that it runs on; where no C compiler works,
PyTorch's is there.
"""

import logging
import os
import shlex
import subprocess
import tempfile
from ctypes import CDLL, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from loraqa.errors import in_a_line

logger = logging.getLogger("loraqa")

# Names of the tanh-GELU in configurations, one formula in different brackets; and their modules.
_NAMES = ("gelu_new", "gelu_pytorch_tanh", "gelu_accurate", "gelu_fast")
_MODULES = tuple(type(ACT2FN[name]) for name in _NAMES)
_SOURCE = Path(__file__).with_name("gelu.c")
# No errno and no floating-point exceptions: nobody asks for them, and they forbid vectors.
_FLAGS = shlex.split("-O3 -march=native -fno-math-errno -fno-trapping-math -fPIC -fopenmp")
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def fuse_gelu(model: nn.Module) -> None:
    """Replace transformers' tanh-GELUs, most of them five tensor operations, by one."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _MODULES):
                setattr(module, name, TanhGelu())


def compiled_gelu(model: PreTrainedModel) -> bool:
    """Whether a model's GELUs are computed by the compiled kernel: its last bits depend on that."""
    fused = any(isinstance(module, TanhGelu) for module in model.modules())
    return fused and _compiled_for(model.device, model.dtype)


class TanhGelu(nn.Module):
    """x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, of any shape, dtype and device."""

    def forward(self, x: Tensor) -> Tensor:
        """Of bf16 computed in fp32, and rounded once."""
        if not _compiled_for(x.device, x.dtype):
            return gelu(x, approximate="tanh")
        y: Tensor = _Compiled.apply(x)  # type: ignore[no-untyped-call]
        return y


class _Compiled(torch.autograd.Function):
    """For the gradient the slope is kept in the place of x, from the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        if ctx.needs_input_grad[0]:
            slope = torch.empty_like(x)
            _call("value_and_slope", x, y, slope)
            ctx.save_for_backward(slope)
        else:
            _call("value", x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dy,) = grads
        (slope,) = ctx.saved_tensors
        dx: Tensor = dy * slope
        return dx


def _call(kernel: str, *tensors: Tensor) -> None:
    function = getattr(_library(), f"{kernel}_{_DTYPES[tensors[0].dtype]}")
    function(*(c_void_p(tensor.data_ptr()) for tensor in tensors), c_int64(tensors[0].numel()))


def _compiled_for(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and dtype in _DTYPES and _works()


@cache
def _works() -> bool:
    """Whether compiling gives something to use; a line says why not."""
    try:
        for dtype in _DTYPES:
            _compare(dtype)
    # Whatever comes of a compiler, or the lack of one.
    except Exception as problem:
        logger.info("GELU is not compiled, and takes longer: %s.", in_a_line(problem))
        return False
    return True


@torch.enable_grad()
def _compare(dtype: torch.dtype) -> None:
    """Raise `AssertionError` where the kernel does not compute what PyTorch computes."""
    x = torch.linspace(-9, 9, 999, dtype=dtype, requires_grad=True)
    y: Tensor = _Compiled.apply(x)  # type: ignore[no-untyped-call]
    expected = gelu(x, approximate="tanh")
    torch.testing.assert_close(_with_slope(y, x), _with_slope(expected, x))


def _with_slope(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return y, torch.autograd.grad(y.sum(), x)[0]


@cache
def _library() -> CDLL:
    """Compile, and load what comes of it.

    It is linked to no OpenMP of its own, but finds PyTorch's, already loaded: two of them would
    fight for the cores.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    with tempfile.TemporaryDirectory() as folder:
        compiled, library = Path(folder) / "gelu.o", Path(folder) / "gelu.so"
        _run([*compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(compiled)])
        _run([*compiler, "-shared", str(compiled), "-o", str(library), "-lm"])
        return CDLL(str(library))


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise OSError(f"{command[0]} says: {error.stderr}") from error
