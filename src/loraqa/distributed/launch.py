"""How `torchrun` starts several processes, and how they find each other.

Importing this loads no PyTorch, because a process alone is to start fast.
"""

import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from loraqa.distributed.ranks import ALONE, PeerError, Ranks
from loraqa.errors import InputError, LoraqaError, explain

logger = logging.getLogger("loraqa")

# Seconds in which `torchrun` ends all processes after one has failed.
_MOMENT = 3.0

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""The network interface that only this machine reaches."""

# A process that a signal has stopped has this status plus the signal's number.
_SIGNALS = 128


@dataclass(frozen=True)
class Place:
    """The place of a process among those that were started together.

    Attributes:
        rank, size: its number, and how many there are.
        local_rank, local_size: the same on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def launcher(self) -> str:
        """What stands before `loraqa train` in the command; other machines need more options."""
        options = f"--nproc-per-node {self.local_size}"
        return f"torchrun {options}{' …' if self.size > self.local_size else ''} -m "


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Return the place that `torchrun` gave this process; None if it is alone.

    Raises:
        InputError: the variables contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "MASTER_ADDR" not in environment or not environment.keys() >= {*names}:
        return None
    try:
        place = Place(*(int(environment[name]) for name in names))
    except ValueError:
        place = Place(0, 0, 0, 0)
    if not (0 <= place.local_rank <= place.rank < place.size >= place.local_size):
        told = ", ".join(f"{name}={environment[name]}" for name in names)
        raise InputError(f"{told} is no place among several processes; start them by torchrun.")
    return place if place.size > 1 else None


@contextmanager
def joined() -> Iterator[Ranks]:
    """Yield the processes that `torchrun` started, once all are there; else this process alone.

    All but the first are silent: they show errors alone.

    Raises:
        InputError: see `place_of`.
        PeerError: not all processes came.
    """
    place = place_of(os.environ)
    if place is None:
        yield ALONE
        return
    if place.rank > 0:
        be_silent()
    if place.size == place.local_size:
        # Gloo takes the address of the machine's name otherwise, where others reach it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    from loraqa.distributed.processes import Processes

    with _ended_at_once():
        ranks = Processes(place)
    with _lost_peers_told(place.rank), _not_repeating_the_first(place.rank):
        yield ranks
    # Not after an error: the others may be gone, and leaving would wait for them.
    ranks.leave()


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """Let signals end this process even while it waits for others, when Python cannot act."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def be_silent() -> None:
    """Show no message below an error, and none when `torchrun` ends this process."""
    logging.getLogger("loraqa").setLevel(logging.ERROR)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def _lost_peers_told(rank: int) -> Iterator[None]:
    """After another process was lost, end a moment later than that one.

    `torchrun` names the process that it sees end first, and then ends the others.
    """
    try:
        yield
    except PeerError as error:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if rank == 0:
            logger.error(str(error))
        time.sleep(_MOMENT)
        if rank == 0:
            raise SystemExit(error.exit_code) from None
        raise


@contextmanager
def _not_repeating_the_first(rank: int) -> Iterator[None]:
    """Keep back an error of another process that the first has, too; a different one names it.

    Where the first fails, `torchrun` ends this process in a moment. A signal stops all.
    """
    try:
        yield
    except (LoraqaError, OSError) as error:
        message, status = explain(error)
        if rank == 0 or isinstance(error, PeerError):
            raise
        if status > _SIGNALS:
            raise SystemExit(status) from None
        time.sleep(_MOMENT)
        kind = InputError if status == InputError.exit_code else LoraqaError
        raise kind(f"Rank {rank}: {message}") from error


@contextmanager
def told_by_the_first(wrong: type[Exception]) -> Iterator[None]:
    """Be silent if this is not the first process; end without a message after an error.

    Args:
        wrong: an error of the arguments, which all processes meet.

    Raises:
        InputError: see `place_of`.
    """
    place = place_of(os.environ)
    if place is None or place.rank == 0:
        yield
        return
    be_silent()
    try:
        yield
    except wrong:
        end_after_the_first(InputError.exit_code)


def end_after_the_first(status: int) -> NoReturn:
    """End this process a moment later than the first, which tells why.

    `torchrun` ends all others when it sees one end, and the first is to tell it before.
    """
    time.sleep(_MOMENT)
    raise SystemExit(status)


def check_alone(option: str) -> None:
    """Raise `InputError` if several processes were started, because `option` needs one."""
    if place_of(os.environ) is not None:
        raise InputError(f"{option} works in one process; start it without torchrun.")


def tell_how_to_use_all(device: str, command: str, ranks: Ranks) -> None:
    """Log how to train on all GPUs, if there are several and this process is alone.

    Args:
        device: the device in the settings, by which the user may have chosen one.
        command: the command that trains.
        ranks: the processes that train.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus > 1 and ranks.size == 1 and device == "auto" and command.startswith("loraqa train"):
        # It works in one process only.
        words = [word for word in shlex.split(command) if word != "--find-learning-rate"]
        where = "" if "--resume" in words else " in a new folder"
        logger.info(
            f"This training uses one of {gpus} GPUs; to use all, stop it and start "
            f"`torchrun --nproc-per-node {gpus} -m {shlex.join(words)}`{where}."
        )
