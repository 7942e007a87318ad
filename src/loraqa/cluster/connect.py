"""Start a Ray cluster on this machine, or connect to one that runs.

Ray asks nobody who they are: whoever reaches its ports runs code. So a cluster that is started here
listens on 127.0.0.1 alone, without a dashboard.
"""

import logging
import math
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Ray reads these when it is imported: report nothing to its makers, and leave what goes wrong to
# the errors that it raises.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
import ray
from ray._private import ray_constants

from loraqa.errors import InputError, LoraqaError, in_a_line

LOCAL = "local"
"""The address that stands for a cluster of this machine, which is started and ended."""

LOSSES = 5
"""How often a process may be lost until what it works on is given up: its work may kill it."""

_LOOPBACK = "127.0.0.1"

_QUIETLY = {"logging_level": logging.ERROR, "log_to_driver": False}

# How long a machine has to answer.
_SECONDS = 10


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the cluster at an address, such as 10.0.0.1:6379, "auto" or "local".

    Raises:
        InputError: there is no cluster.
        LoraqaError: a cluster that was started here does not keep to this machine, or the work
            inside raised an error of Ray.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            _start()
        else:
            _connect(address)
        # Ray puts its own handler in the place of ours.
        signal.signal(signal.SIGTERM, terminate)
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise LoraqaError(
            f"The work on the Ray cluster has failed ({in_a_line(cause)}); see whether its "
            "machines run and have enough memory, and give the same command again."
        ) from error
    finally:
        ray.shutdown()


def _start() -> None:
    """Start a cluster that listens on 127.0.0.1 alone, with the cores of this process."""
    with _loopback():
        ray.init(
            LOCAL,
            num_cpus=_cores(),
            include_dashboard=False,
            _node_ip_address=_LOOPBACK,
            **_QUIETLY,
        )
    if any(node["NodeManagerAddress"] != _LOOPBACK for node in ray.nodes()):
        raise LoraqaError(
            f"Ray {ray.__version__} does not listen on {_LOOPBACK} alone; start a cluster "
            "yourself, behind a firewall, and give its address."
        )


def _cores() -> int:
    """Return how many cores this process may use; on macOS it may use all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray take the loopback address for that of this machine, as it does on macOS.

    On Linux it replaces 127.0.0.1 by an address that other machines reach.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _connect(address: str) -> None:
    try:
        if address != "auto":
            _check_reachable(address)
        ray.init(address, **_QUIETLY)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"There is no Ray cluster at {address} ({in_a_line(error)}); start one with "
            "`ray start`, or leave the address out."
        ) from None


def _check_reachable(address: str) -> None:
    """Raise `OSError` or `ValueError` if nothing listens at an address; Ray would wait minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_SECONDS):
        pass


def workers_and_needs(workers: int | None) -> tuple[int, dict[str, int]]:
    """Return how many workers the cluster has, and what each needs, as Ray's options say it.

    By default there is one for each GPU, or if there is none, one for each machine. Without GPUs,
    the workers of a machine share its cores.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := sum(int(machine.get("GPU", 0)) for machine in machines):
        return min(workers or gpus, gpus), {"num_gpus": 1}
    cores = [int(machine["CPU"]) for machine in machines if machine.get("CPU")]
    if not cores:
        raise InputError("The Ray cluster has neither cores nor GPUs; add machines to it.")
    workers = workers or len(cores)
    of_a_machine = math.ceil(workers / len(cores))
    return workers, {"num_cpus": max(1, min(cores) // of_a_machine)}
