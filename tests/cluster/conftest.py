"""A Ray cluster of two nodes on this machine."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Else workers wait for every other process, such as those of tests beside these.
os.environ.setdefault("RAY_worker_niceness", "0")
# Workers are started for work alone, and not beforehand: each imports much.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

NO_RAY = "no Ray here; install it with `pip install -e '.[ray]'`"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A head with one core and a second node with one core, each with processes of its own."""
    import ray
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def kill_worker(name: str) -> None:
    """Kill a process of the cluster that works on something with this name."""
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::") and name in " ".join(process.cmdline()):
            process.kill()
            return
    raise LookupError(f"no worker has the name {name}")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it never held")
        time.sleep(0.1)
