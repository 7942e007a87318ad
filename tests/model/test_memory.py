"""Lack of memory is one sentence, and nothing else is taken for it."""

import pytest
import torch

from loraqa.errors import LoraqaError
from loraqa.model.memory import explaining_lack_of_memory


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
