"""A lack of memory is reported in one sentence, and no other error is taken for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model

from loraqa.errors import LoraqaError
from loraqa.model.choose import choose_runner
from loraqa.model.load import load_model
from loraqa.model.memory import explaining_lack_of_memory, tokens_at_once


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
        pytest.raises(LoraqaError, match=r"^Out of memory in step 7 \(.+\): ask for less\.$"),
        explaining_lack_of_memory("in step 7", "ask for less"),
    ):
        raise error


def test_the_processors_own_error_is_known() -> None:
    with (
        pytest.raises(LoraqaError, match="Out of memory here"),
        explaining_lack_of_memory("here", "ask for less"),
    ):
        torch.empty(2**62, dtype=torch.uint8)


def test_the_outermost_advice_is_given() -> None:
    with (
        pytest.raises(LoraqaError, match=r"^Out of memory outside \(no room\): set the setting\.$"),
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
        ("while the model was loaded", lambda folder: load_model(folder, device="cpu")),
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

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    monkeypatch.setattr("loraqa.model.choose._alone", full)
    with pytest.raises(LoraqaError, match=rf"^Out of memory {where} \(CUDA out of memory\)"):
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
