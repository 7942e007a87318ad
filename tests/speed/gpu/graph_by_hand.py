"""CUDA graphs by plain operations on any device: a replay computes anew from the same memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Operations that wait for the GPU, because the CPU reads a number or a shape from their input.
_WAITING = {"_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique2"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class _Capture(TorchDispatchMode):
    """Refuses operations that wait for the GPU, as the capture of a CUDA graph does."""

    def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None):
        name = operation.overloadpacket.__name__
        by_mask = name in _INDEXING and any(_is_mask(each) for each in tree_iter(args[1]))
        if name in _WAITING or by_mask:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        return operation(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


@dataclass
class Recorder:
    """In place of `graphs.Recorder`.

    Attributes:
        device: where results lie.
        recorded: how many computations were recorded.
    """

    device: torch.device
    recorded: int = 0

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See `graphs.Recorder.record`."""
        self.recorded += 1
        result = torch.zeros((), dtype=torch.float64, device=self.device)

        def replay() -> None:
            with _Capture():
                loss = compute()
            result.copy_(loss)

        return replay, result
