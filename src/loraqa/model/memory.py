"""Memory: kept between steps, and its lack told in one sentence."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loraqa.errors import LoraqaError

# On the CPU and on some accelerators torch has no type of its own for this.
_SIGNS = ("can't allocate", "out of memory", "ALLOC_FAILED")
# Of glibc's malloc.h, and thresholds that no tensor of a training step reaches.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER_TRIM, _NEVER_MMAP = 2**31 - 1, 2**30
# Older glibc refuses more: HEAP_MAX_SIZE / 2 of its malloc.c, on 64 bits.
_SELDOM_MMAP = 2**25


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free, for the next ones.

    Where malloc is glibc's, it would give large pieces back to the system at once, which then has
    to clear new ones page by page; large training steps on a CPU take longer for it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, _NEVER_MMAP):
            mallopt(_M_MMAP_THRESHOLD, _SELDOM_MMAP)
        mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)


# Where nothing has been trained yet, and there is no batch to make smaller.
ADVICE_TO_LOADERS = "free some of it, or choose a smaller model or another device"


class LackOfMemoryError(LoraqaError):
    """Memory was out: where, why, and what to do."""

    def __init__(self, where: str, reason: str, advice: str) -> None:
        super().__init__(f"Memory is out {where} ({reason}): {advice}.")
        self.reason = reason


@contextmanager
def explaining_lack_of_memory(where: str, advice: str) -> Iterator[None]:
    """Raise `LackOfMemoryError` where memory is out; of several around a call the outermost speaks.

    Args:
        where: what was being done, such as "in step 7".
        advice: what to do, such as "lower tokens_per_batch".
    """
    try:
        yield
    except LackOfMemoryError as error:
        raise LackOfMemoryError(where, error.reason, advice) from error
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise LackOfMemoryError(where, reason, advice) from error


def _is_lack_of_memory(error: Exception) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(sign in str(error) for sign in _SIGNS)
