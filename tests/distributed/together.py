"""Run a function in several processes that train together: forks, because starting takes long."""

import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from loraqa.distributed.launch import Place
from loraqa.distributed.processes import PATIENCE, Processes
from loraqa.distributed.ranks import ALONE, Ranks

# What takes longer hangs.
LIMIT = 100.0


@dataclass(frozen=True)
class Ended:
    """How one of the processes ended.

    Attributes:
        result: what it returned.
        raised: the class of the error that it raised, if any.
        said: the message of the error.
    """

    result: Any = None
    raised: type[BaseException] | None = None
    said: str = ""


def together(size: int, work: Callable[[Ranks], Any], folder: Path) -> list[Any]:
    """Return what `work` returns in each of `size` processes."""
    ended = attempt_together(size, work, folder)
    assert [each.said for each in ended if each.raised] == []
    return [each.result for each in ended]


def attempt_together(
    size: int, work: Callable[[Ranks], Any], folder: Path, patience: timedelta = PATIENCE
) -> list[Ended]:
    """Return how `work` ends in each of `size` processes."""
    if size == 1:
        return [Ended(work(ALONE))]
    port = free_port()
    processes = [
        _fork(Place(rank, size, rank, size), port, work, folder, patience) for rank in range(size)
    ]
    end = time.monotonic() + LIMIT
    try:
        for process in processes:
            watch = os.pidfd_open(process)
            in_time, _, _ = select.select([watch], [], [], end - time.monotonic())
            os.close(watch)
            assert in_time, "a process hangs"
    finally:
        for process in processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    return [_read(folder / f"rank-{rank}") for rank in range(size)]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def be_on_loopback(environment: MutableMapping[str, str]) -> None:
    """Let processes that are started with this environment talk within this machine."""
    environment.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")


def _fork(
    place: Place, port: int, work: Callable[[Ranks], Any], folder: Path, patience: timedelta
) -> int:
    process = os.fork()
    if process:
        return process
    ended = Ended()
    try:
        be_on_loopback(os.environ)
        os.environ["MASTER_PORT"] = str(port)
        ended = Ended(work(Processes(place, patience)))
    except BaseException as error:
        ended = Ended(None, type(error), str(error))
    finally:
        (folder / f"rank-{place.rank}").write_bytes(pickle.dumps(ended))
        os._exit(0)


def _read(file: Path) -> Ended:
    ended: Ended = pickle.loads(file.read_bytes())
    file.unlink()
    return ended
