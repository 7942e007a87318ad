"""Make glibc keep freed memory for reuse. This changes no result.

By default glibc returns large pieces to the system at once, and the system clears new ones page by
page, which slows large training steps on a CPU.
"""

import ctypes

from loraqa.model.runner import Runner, Use

# Of glibc's malloc.h, and thresholds that no tensor of a training step reaches.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER_TRIM, _NEVER_MMAP = 2**31 - 1, 2**30
# Older glibc accepts no larger threshold: HEAP_MAX_SIZE / 2 of its malloc.c, on 64 bits.
_SELDOM_MMAP = 2**25


def applies(_runner: Runner, _uses: frozenset[Use]) -> bool:
    """On glibc alone; other systems have no such switch."""
    return hasattr(ctypes.CDLL(None), "mallopt")


def wrap(runner: Runner) -> Runner:
    """Set glibc's thresholds for this process."""
    mallopt = ctypes.CDLL(None).mallopt
    if not mallopt(_M_MMAP_THRESHOLD, _NEVER_MMAP):
        mallopt(_M_MMAP_THRESHOLD, _SELDOM_MMAP)
    mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
    return runner
