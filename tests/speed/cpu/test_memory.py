"""Freed memory is kept, as far as glibc allows it."""

import ctypes
import platform
from typing import Any, cast

import pytest

from loraqa.speed.cpu import memory

# The model does not matter here.
RUNNER: Any = cast(Any, None)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


class Glibc:
    """Its `mallopt`, which refuses what its version refuses."""

    def __init__(self, largest_mmap_threshold: int) -> None:
        self.largest_mmap_threshold = largest_mmap_threshold
        self.options: dict[int, int] = {}

    def mallopt(self, option: int, value: int) -> int:
        if option == M_MMAP_THRESHOLD and value > self.largest_mmap_threshold:
            return 0
        self.options[option] = value
        return 1


@pytest.mark.parametrize(("largest", "taken"), [(2**31 - 1, 2**30), (2**25, 2**25)])
def test_freed_memory_is_kept_as_far_as_glibc_lets_us(
    largest: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    glibc = Glibc(largest)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: glibc)
    memory.wrap(RUNNER)
    assert glibc.options == {M_MMAP_THRESHOLD: taken, M_TRIM_THRESHOLD: 2**31 - 1}


def test_where_malloc_is_not_glibcs_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.applies(RUNNER, frozenset()) == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not memory.applies(RUNNER, frozenset())
