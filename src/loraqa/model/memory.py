"""Lack of memory, told in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loraqa.errors import LoraqaError

# On the CPU and on some accelerators torch has no type of its own for this.
_SIGNS = ("can't allocate", "out of memory", "ALLOC_FAILED")


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
