"""Freed memory is kept; lack of memory is one sentence, and nothing else is taken for it."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model

from loraqa.errors import LoraqaError
from loraqa.model.choose import choose_runner
from loraqa.model.load import load_base
from loraqa.model.memory import (
    explaining_lack_of_memory,
    keep_freed_memory,
    tokens_at_once,
)

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
    keep_freed_memory()
    assert glibc.options == {M_MMAP_THRESHOLD: taken, M_TRIM_THRESHOLD: 2**31 - 1}


def test_where_malloc_is_not_glibcs_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_freed_memory()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        MemoryError(),
    ],
)
def test_lack_of_memory_is_explained(error: Exception) -> None:
    with (
        pytest.raises(LoraqaError, match=r"^Memory is out in step 7 \(.+\): ask for less\.$"),
        explaining_lack_of_memory("in step 7", "ask for less"),
    ):
        raise error


def test_the_processors_own_error_is_known() -> None:
    with (
        pytest.raises(LoraqaError, match="Memory is out here"),
        explaining_lack_of_memory("here", "ask for less"),
    ):
        torch.empty(2**62, dtype=torch.uint8)


def test_the_outermost_advice_is_given() -> None:
    with (
        pytest.raises(LoraqaError, match=r"^Memory is out outside \(no room\): set the setting\.$"),
        explaining_lack_of_memory("outside", "set the setting"),
        explaining_lack_of_memory("inside", "set the field"),
    ):
        raise torch.OutOfMemoryError("no room")


def test_another_error_stays_what_it_is() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes differ"),
        explaining_lack_of_memory("here", "ask for less"),
    ):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("while the model was loaded", lambda folder: load_base(folder, device="cpu")),
        (
            "while the model was tried on small trees",
            lambda _: choose_runner(tiny_model("gpt2"), 256),
        ),
    ],
)
def test_a_model_too_large_is_told_in_a_sentence(
    where: str, call: Callable[[Path], Any], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("loraqa.model.load.fuse_gelu", full)
    monkeypatch.setattr("loraqa.model.choose._alone", full)
    with pytest.raises(LoraqaError, match=rf"^Memory is out {where} \(CUDA out of memory\)"):
        call(tiny_folder)


@pytest.mark.parametrize(
    ("kind", "dtype", "free", "tokens"),
    [
        # Two layers of keys and values of 32 numbers, 2 bytes each: 256 bytes a token.
        ("gpt2", "bfloat16", 8 * 256 * 50_000, 50_000),
        ("gpt2", "float32", 8 * 256 * 50_000, 25_000),
        # Half of the heads have keys of their own.
        ("llama", "bfloat16", 8 * 256 * 50_000, 100_000),
        ("gpt2", "bfloat16", 8 * 256 * 100, 16_384),
        ("gpt2", "bfloat16", 2**40, 262_144),
    ],
)
def test_on_a_gpu_as_many_tokens_as_fit_are_answered_at_once(
    kind: str, dtype: str, free: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(kind, dtype)
    assert tokens_at_once(model) == 16_384
    monkeypatch.setattr(type(model), "device", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2 * free))
    assert tokens_at_once(model) == tokens
