"""Processes that train together and talk by `torch.distributed`: Gloo on CPUs, NCCL on GPUs."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from signal import Signals
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loraqa.distributed.launch import Place, end_after_the_first
from loraqa.distributed.ranks import PeerError, Ranks
from loraqa.errors import InputError, LoraqaError, in_a_line
from loraqa.lora.flat import FlatAdapter
from loraqa.prompt.plan import Size, Step, pack
from loraqa.prompt.shares import shares

PATIENCE = timedelta(minutes=30)
"""How long a process waits for what all do: a step, a checkpoint, the answers to its questions."""

# How long processes wait for what the first does alone, such as calibrating, and for each other's
# model and data, which one may have to download.
_LONG_PATIENCE = timedelta(hours=24)

_CUDA = ("auto", "cuda")


class Processes(Ranks):
    """Several processes, of which this is one (see `Ranks`). Making it waits for all of them.

    Args:
        place: the place of this process.
        patience: how long to wait for the others.

    Raises:
        PeerError: not all came in time.
    """

    def __init__(self, place: Place, patience: timedelta = PATIENCE) -> None:
        self.rank, self.size = place.rank, place.size
        self.on_machine, self.launcher = place.local_size, place.launcher
        self._local_rank = place.local_rank
        self._patience = patience
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with self._waiting(f"all {self.size} processes to start"):
            dist.init_process_group(backend, timeout=patience, rank=self.rank, world_size=self.size)
            self._patient = dist.new_group(backend="gloo", timeout=_LONG_PATIENCE)

    def leave(self) -> None:
        """End the connections. Other processes may go on alone."""
        dist.destroy_process_group()

    def device(self, name: str) -> str:
        """See `Ranks`. Each process has the GPU of its number on its machine.

        Raises:
            InputError: the settings name one GPU for all, or there are too few.
        """
        if name not in _CUDA and not name.startswith("cuda:"):
            return name
        if not torch.cuda.is_available():
            return "cpu" if name == "auto" else name
        if name not in _CUDA:
            raise InputError(
                f"model.device={name} is one GPU, but {self.on_machine} processes train on this "
                "machine, each on its own; leave model.device out."
            )
        if self.on_machine > (gpus := torch.cuda.device_count()):
            raise InputError(
                f"{self.on_machine} processes were started on a machine with {gpus} GPUs; start "
                f"{gpus} (--nproc-per-node), or set model.device=cpu."
            )
        return f"cuda:{self._local_rank}"

    def part(self, step: Step, tokens_per_batch: int, size: Size) -> Step:
        """See `Ranks`. Trees are shared by the tokens that they cost."""
        trees = [tree for micro_batch in step for tree in micro_batch]
        own = shares([size([tree]) for tree in trees], self.size)[self.rank]
        return pack([trees[index] for index in own], tokens_per_batch, size)

    def add_up(self, adapter: FlatAdapter, loss: Tensor, asked: bool) -> tuple[Tensor, ...]:
        """See `Ranks`. Everything is summed in one vector, so that processes wait but once."""
        all_losses, all_asked = adapter.beside_gradient
        all_losses.copy_(loss)
        all_asked.fill_(float(asked))
        with self._waiting("the gradients"):
            dist.all_reduce(adapter.gradient_and_beside)
        return all_losses, all_asked

    def agree(self, received: Signals | None) -> Signals | None:
        """See `Ranks`."""
        number = torch.tensor(int(received or 0))
        with self._waiting("a common end of a step"):
            dist.all_reduce(number, dist.ReduceOp.MAX)
        return Signals(int(number)) if number else None

    def of_first(self, work: Callable[[], Any], what: str) -> Any:
        """See `Ranks`."""
        if not self.is_first:
            answer = self._of_first(None, what)
            if "failed" in answer:
                end_after_the_first(answer["failed"])
            return answer["result"]
        try:
            result = work()
        except (LoraqaError, OSError) as error:
            self._of_first({"failed": getattr(error, "exit_code", 1)}, what)
            raise
        self._of_first({"result": result}, what)
        return result

    def gather(self, value: Any, what: str) -> list[Any]:
        """See `Ranks`."""
        own = _to_bytes(value)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with self._waiting(what):
            dist.all_gather(lengths, torch.tensor([len(own)]))
            longest = max(int(length) for length in lengths)
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, torch.cat([own, own.new_zeros(longest - len(own))]))
        return [
            _from_bytes(text[: int(length)]) for text, length in zip(texts, lengths, strict=True)
        ]

    def meet(self, what: str) -> None:
        """See `Ranks`."""
        with self._waiting(what, _LONG_PATIENCE):
            dist.barrier(group=self._patient)

    def copy_(self, *tensors: Tensor, what: str) -> None:
        """See `Ranks`."""
        with self._waiting(what):
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def _of_first(self, value: Any, what: str) -> Any:
        """Return the value of the first in all."""
        text = _to_bytes(value)
        length = torch.tensor([len(text)])
        with self._waiting(what, _LONG_PATIENCE):
            dist.broadcast(length, 0, group=self._patient)
            text = text if self.is_first else torch.zeros(int(length), dtype=torch.uint8)
            dist.broadcast(text, 0, group=self._patient)
        return _from_bytes(text)

    @contextmanager
    def _waiting(self, what: str, patience: timedelta | None = None) -> Iterator[None]:
        """Raise `PeerError`, which says what was waited for, if the others do not answer.

        They have `patience`, by default that of the processes.
        """
        try:
            yield
        except RuntimeError as error:
            raise PeerError(
                f"Rank {self.rank} of {self.size} waited for {what} in vain, because "
                f"{_reason(error, patience or self._patience)}; see which rank torchrun names, and "
                "start all again, with --resume if the training had begun."
            ) from error


def _reason(error: RuntimeError, patience: timedelta) -> str:
    """Return what happened to another process, as far as an error of Gloo or NCCL tells."""
    text = str(error)
    if "imed out" in text or "timeout" in text:
        return f"another rank did not answer within {patience.total_seconds():,.0f} s"
    lost = ("Connection", "connection", "Broken pipe", "remote")
    return "another rank has ended" if any(sign in text for sign in lost) else in_a_line(error)


def _to_bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(text: Tensor) -> Any:
    return json.loads(bytes(text.tolist()))
