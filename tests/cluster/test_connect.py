"""A cluster that is started here listens to this machine alone; without Ray a sentence says so."""

import sys
from pathlib import Path

import psutil
import pytest
from tests.batch.conftest import ROWS, write_lines
from tests.cluster.conftest import NO_RAY, wait_for
from tests.conftest import Call

from loraqa.cli.cluster import with_addresses
from loraqa.errors import InputError


def listening() -> set[str]:
    """The addresses at which processes that this one has started listen."""
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def test_a_cluster_that_is_started_here_listens_to_this_machine_alone() -> None:
    ray = pytest.importorskip("ray", reason=NO_RAY)
    from loraqa.cluster.connect import LOCAL, connected, workers_and_needs

    with connected(LOCAL):
        (node,) = ray.nodes()
        assert node["NodeManagerAddress"] == "127.0.0.1"
        # A worker listens, too.
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        assert listening() == {"127.0.0.1"}
        cores = int(node["Resources"]["CPU"])
        if "GPU" not in node["Resources"]:
            assert workers_and_needs(None) == (1, {"num_cpus": cores})
            assert workers_and_needs(cores) == (cores, {"num_cpus": 1})
    assert not ray.is_initialized()
    wait_for(lambda: not listening())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_address_without_a_cluster_is_told_in_a_sentence(address: str) -> None:
    pytest.importorskip("ray", reason=NO_RAY)
    from loraqa.cluster.connect import connected

    with (
        pytest.raises(InputError, match=f"There is no Ray cluster at {address} .*`ray start`"),
        connected(address),
    ):
        pass


def test_ray_without_an_address_is_this_machine() -> None:
    assert with_addresses(["--ray"]) == ["--ray", "local"]
    assert with_addresses(["--ray", "--json"]) == ["--ray", "local", "--json"]
    assert with_addresses(["a", "--ray", "auto", "b"]) == ["a", "--ray", "auto", "b"]
    assert with_addresses(["ask", "run", "--", "ray"]) == ["ask", "run", "--", "ray"]


def test_without_ray_the_commands_say_what_to_install(
    tiny_folder: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith(("loraqa.cluster", "ray."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    data = write_lines(tmp_path / "in.jsonl", ROWS[:1])
    words = ("answer", tiny_folder, "--data", data, "--out", tmp_path / "out.jsonl")
    assert call(*words, "--ray") == (
        1,
        "",
        "loraqa: --ray needs ray; install it with `pip install -e '.[ray]'`.\n",
    )
    status, _, error = call(*words, "--readers", 2)
    assert (status, "add --ray, or leave it out" in error) == (2, True)
