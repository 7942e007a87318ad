"""Choosing how rows of answers attend: the fastest that computes what `GrowingRows` computes."""

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from loraqa.errors import in_a_line
from loraqa.model import native
from loraqa.model.attention import Rows, States
from loraqa.model.compiled_rows import CompiledRows
from loraqa.model.rows import GrowingRows
from loraqa.model.varlen_rows import VarlenRows
from loraqa.prompt.batch import TreeSpan

logger = logging.getLogger("loraqa")

_Kind = type[GrowingRows] | type[CompiledRows] | type[VarlenRows]

# Of which widths kernels of variable lengths compute.
_WIDTHS = range(8, 257, 8)
# Of what is computed to compare: three rows on two trunks.
_SPANS = (TreeSpan(0, trunk=5, branches=(2, 3)), TreeSpan(10, trunk=3, branches=(1,)))


def choose_rows(spans: Sequence[TreeSpan], prompts: States) -> Rows:
    """A row for each branch, to go on from the keys and values of all tokens of packed trees.

    Args:
        spans: where the trees lie.
        prompts: the keys and values.
    """
    states, values = prompts[0]
    if compiles(states.device, states.dtype):
        return CompiledRows(spans, prompts)
    fits = states.shape == values.shape and states.shape[-1] in _WIDTHS
    if fits and _is_varlen(states.device, states.dtype):
        return VarlenRows(spans, prompts)
    return GrowingRows(spans, prompts)


def compiles(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel in C for rows there."""
    return native.works("Answers are written", _check_compiled, device, dtype)


def _check_compiled(dtype: torch.dtype) -> None:
    _check(CompiledRows, torch.device("cpu"), dtype)


@cache
def _is_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    try:
        _check(VarlenRows, device, dtype)
    except torch.OutOfMemoryError:
        raise
    # Whatever a GPU without such kernels has to say.
    except Exception as problem:
        logger.info("Answers are written by slower operations: %s.", in_a_line(problem))
        return False
    return True


@torch.no_grad()
def _check(kind: _Kind, device: torch.device, dtype: torch.dtype) -> None:
    """Raise `AssertionError` where a kind does not compute what `GrowingRows` does in fp32."""
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 2, _SPANS[-1].end, 8, generator=generator).to(device, dtype)
    query, key, value = torch.randn(3, 1, 4, 3, 8, generator=generator).to(device, dtype)
    numbers = [keys, values, query, key[:, :2], value[:, :2]]
    expected = _attended(GrowingRows, [each.float() for each in numbers])
    error = (_attended(kind, numbers) - expected).norm() / expected.norm()
    assert error < 4 * torch.finfo(dtype).eps, f"they are {error:.1g} off"


def _attended(kind: _Kind, numbers: Sequence[Tensor]) -> Tensor:
    keys, values, query, key, value = numbers
    rows = kind(_SPANS, {0: (keys, values)})
    rows.make_room()
    return rows.attend(0, query, key, value, scaling=0.3)
