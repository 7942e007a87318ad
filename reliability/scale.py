"""The scale study: one of several processes is killed, and the training goes on.

Tiny trainings of two or three processes run under torchrun's agent, which is forked from a process
that has imported PyTorch. One process is killed a seeded moment after it began a seeded exchange
with the others. A training holds if all its processes end soon, with a status other than 0 and a
message that names the killed one, and if the same launch with `--resume` then ends with the bits of
an undisturbed training. Every fifth time another number of processes goes on: it warns, and its
weights are the same up to rounding.
"""

import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any
from unittest.mock import patch

from reliability.forks import Ended, loraqa, run
from reliability.trials import Verdict, finish, new_place
from reliability.works import FAMILIES, RUN, Work, result_of, training_arguments, write_inputs

# All processes must have ended so many seconds after one was killed.
_SOON = 30.0
# By how much the weights may differ with another number of processes, relative to their size. Adam
# enlarges the rounding of gradients that are nearly 0.
_ROUNDING = 1e-3
# A process is killed so many seconds after an exchange, at most; then it computes or writes.
_DELAY = 0.05
# Files that processes leave: how many exchanges there were, and when one was killed. What is named
# so is no part of a result.
_EXCHANGES, _KILLED = "cache-exchanges", "cache-killed"
_WARNING = "its result may differ by rounding"


@dataclass(frozen=True)
class Training:
    """A training in several processes.

    Attributes:
        inputs: the folder that `write_inputs` filled.
        family: the family of the model.
        size: the number of processes.
        dropout: that of LoRA.
    """

    inputs: Path
    family: str
    size: int
    dropout: float

    def __str__(self) -> str:
        return f"{self.family} in {self.size} processes"

    def work(self, kill: "Kill | None" = None) -> Work:
        """Return its work, in which a process may be killed."""
        options = {
            "lora.dropout": self.dropout,
            "model.dtype": "float32",
            # Trying them takes longer than the training.
            "speed.without": "all",
        }
        begin = training_arguments(self.inputs, self.family, **options)
        return Work(
            f"train {self}",
            partial(launch, self.size, begin, kill),
            partial(launch, self.size, ["train", "--out", RUN, "--resume"]),
            start={},
        )


@dataclass(frozen=True)
class Kill:
    """A process of a training is killed, and then `then` processes go on.

    Attributes:
        training: the training.
        rank: the process.
        exchange: the number of its exchange with the others, from 1 on, at which it is killed.
        seconds: how long after it began this exchange.
        then: the number of processes that go on.
    """

    training: Training
    rank: int
    exchange: int
    seconds: float
    then: int

    @property
    def group(self) -> str:
        """The line of the table."""
        return f"{self.training.size} processes, then {self.then}"

    def __str__(self) -> str:
        when = f"rank {self.rank} killed {self.seconds:.3f} s after exchange {self.exchange}"
        return f"{self.training}, {when}, {self.then} go on"


@dataclass(frozen=True)
class Undisturbed:
    """A training that nothing disturbs.

    Attributes:
        result: its files.
        weights: those of its adapter, by name.
        exchanges: how often each process waits for the others.
    """

    result: Mapping[str, Any]
    weights: Mapping[str, Any]
    exchanges: int


def study(folder: Path, kills: int, seed: int, report: Callable[[Kill, Verdict], None]) -> None:
    """Kill one process of each of so many trainings, and report whether they held."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    inputs = folder / "inputs"
    run(partial(write_inputs, inputs), folder)
    chance = random.Random(seed)
    known: dict[Training, Undisturbed] = {}
    for number in range(kills):
        size, other = (2, 3) if number // 2 % 2 == 0 else (3, 2)
        changes = number % 5 == 4
        training = Training(inputs, FAMILIES[number % 2], size, 0.0 if changes else 0.1)
        if training not in known:
            known[training] = undisturbed(training, folder)
        exchange = 1 + int(known[training].exchanges * (number + chance.random()) / kills)
        kill = Kill(
            training,
            chance.randrange(size),
            exchange,
            _DELAY * chance.random(),
            other if changes else size,
        )
        report(kill, attempt(kill, folder, known[training]))


def undisturbed(training: Training, folder: Path) -> Undisturbed:
    """Train, and return what that gives.

    Raises:
        SystemExit: the training fails.
    """
    with new_place(folder, {}) as place:
        ended = run(training.work().begin, place)
        if ended.status != 0:
            raise SystemExit(f"{training} fails, undisturbed:\n{ended.said}")
        exchanges = int((place / _EXCHANGES).read_text())
        return Undisturbed(result_of(place), weights(place), exchanges)


def attempt(kill: Kill, folder: Path, expected: Undisturbed) -> Verdict:
    """Kill a process, go on, and judge how that ends."""
    training = kill.training
    with new_place(folder, {}) as place:
        ended = run(training.work(kill).begin, place)
        if failure := _badly_ended(kill, ended, place):
            return Verdict(f"{failure}: {ended.said[-3000:]}")
        if kill.then == training.size:
            failure = finish(training.work(), place, expected.result)
        else:
            failure = _gone_on_by_others(kill, place, expected)
        # The training may have been done before.
        return Verdict(failure, said=ended.status != 0)


def _badly_ended(kill: Kill, ended: Ended, place: Path) -> str | None:
    """Return what is wrong with the end of a training of which a process was killed, or None."""
    if ended.status == 0:
        # It was done before.
        return None
    named = f"rank      : {kill.rank} (local_rank: {kill.rank})\n  exitcode  : {-signal.SIGKILL}"
    if named not in ended.said:
        return "nothing names the killed process"
    late = time.monotonic() - float((place / _KILLED).read_text())
    return f"it ended only {late:.1f} s after the kill" if late > _SOON else None


def _gone_on_by_others(kill: Kill, place: Path, expected: Undisturbed) -> str | None:
    """Go on with another number of processes; return what is wrong with the end, or None."""
    began = (place / RUN / "environment.json").exists()
    others = Training(kill.training.inputs, kill.training.family, kill.then, 0.0)
    ended = others.work().finish(place)
    if ended.status != 0:
        return f"it did not go on: {ended.said[-3000:]}"
    if began and _WARNING not in ended.said:
        return "no warning tells of another number of processes"
    return difference_of_weights(expected.weights, weights(place))


def difference_of_weights(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return how adapters differ by more than rounding, or None."""
    for name, weight in before.items():
        if not (error := float((after[name] - weight).norm() / weight.norm())) <= _ROUNDING:
            return f"{name} differs by {error:.1g} of its size"
    return None


def weights(place: Path) -> Mapping[str, Any]:
    """Return the weights of a run's adapter, by name."""
    from safetensors.torch import load_file

    return load_file(place / RUN / "adapter" / "adapter_model.safetensors")


def launch(size: int, arguments: Sequence[str], kill: Kill | None = None) -> None:
    """Run loraqa's command line in `size` processes, as torchrun does; one may be killed."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            run_id="scale",
            rdzv_backend="static",
            rdzv_endpoint=f"127.0.0.1:{_free_port()}",
            rdzv_configs={"rank": 0},
            start_method="fork",
            max_restarts=0,
            monitor_interval=0.1,
        )
        try:
            elastic_launch(config, _be_one)(arguments, kill)
        except ChildFailedError as error:
            sys.stderr.write(f"{error}\n")
            raise SystemExit(1) from None


def _be_one(arguments: Sequence[str], kill: Kill | None) -> None:
    """Be one of the processes: count its exchanges, and die at one of them if it is the victim."""
    from loraqa.distributed.processes import Processes

    rank, exchanges = int(os.environ["RANK"]), 0
    waiting = Processes._waiting

    def counted(ranks: Processes, *of_waiting: Any) -> AbstractContextManager[None]:
        nonlocal exchanges
        exchanges += 1
        if kill and (kill.rank, kill.exchange) == (rank, exchanges):
            Timer(kill.seconds, _die).start()
        return waiting(ranks, *of_waiting)

    with patch.object(Processes, "_waiting", counted):
        try:
            loraqa(arguments)
        finally:
            if rank == 0 and kill is None:
                Path(_EXCHANGES).write_text(str(exchanges))


def _die() -> None:
    Path(_KILLED).write_text(str(time.monotonic()))
    os.kill(os.getpid(), signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
