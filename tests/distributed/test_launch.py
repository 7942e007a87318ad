"""How processes find their place and their GPU, in pretended environments."""

import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from loraqa.distributed import launch, processes
from loraqa.distributed.launch import (
    Place,
    check_alone,
    end_after_the_first,
    joined,
    place_of,
    tell_how_to_use_all,
)
from loraqa.distributed.processes import Processes
from loraqa.distributed.ranks import ALONE
from loraqa.errors import InputError


def environment(rank: int, size: int, local_rank: int, local_size: int) -> dict[str, str]:
    """What torchrun sets."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


def test_torchrun_tells_the_place() -> None:
    assert place_of(environment(5, 8, 1, 4)) == Place(5, 8, 1, 4)


@pytest.mark.parametrize(
    "variables", [{}, {"RANK": "1", "WORLD_SIZE": "2"}, environment(0, 1, 0, 1)]
)
def test_a_process_may_be_alone(variables: dict[str, str]) -> None:
    assert place_of(variables) is None


@pytest.mark.parametrize("wrong", [{"RANK": "two"}, {"RANK": "2"}, {"LOCAL_RANK": "-1"}])
def test_a_place_that_cannot_be_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match="is no place among several processes"):
        place_of(environment(1, 2, 1, 2) | wrong)


def test_alone_nothing_is_joined() -> None:
    with joined() as ranks:
        assert ranks is ALONE


def test_the_command_to_go_on_names_the_launcher() -> None:
    assert Place(0, 4, 0, 4).launcher == "torchrun --nproc-per-node 4 -m "
    assert Place(0, 8, 0, 4).launcher == "torchrun --nproc-per-node 4 … -m "


class Pretended(Processes):
    """A process whose group does not exist."""

    def __init__(self, place: Place) -> None:
        self.rank, self.size, self.on_machine = place.rank, place.size, place.local_size
        self._local_rank = place.local_rank


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the machine have so many GPUs."""

    def have(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


@pytest.mark.parametrize(
    ("count", "chosen", "device"),
    [
        (4, "auto", "cuda:1"),
        (4, "cuda", "cuda:1"),
        (4, "cpu", "cpu"),
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
    ],
)
def test_each_process_has_the_gpu_of_its_number_on_its_machine(
    count: int, chosen: str, device: str, gpus: Any
) -> None:
    gpus(count)
    assert Pretended(Place(5, 8, 1, 4)).device(chosen) == device


def test_one_gpu_for_several_processes_is_refused(gpus: Any) -> None:
    gpus(4)
    with pytest.raises(InputError, match="model.device=cuda:2 is one GPU"):
        Pretended(Place(0, 2, 0, 2)).device("cuda:2")


def test_more_processes_than_gpus_are_refused(gpus: Any) -> None:
    gpus(2)
    with pytest.raises(InputError, match="3 processes were started on a machine with 2 GPUs"):
        Pretended(Place(0, 3, 0, 3)).device("auto")


def test_a_process_alone_takes_the_device_of_the_settings() -> None:
    assert ALONE.device("cuda:2") == "cuda:2"


@pytest.mark.parametrize(
    ("count", "device", "command", "told"),
    [
        (4, "auto", "loraqa train --out x", True),
        (1, "auto", "loraqa train --out x", False),
        (4, "cuda:1", "loraqa train --out x", False),
        (4, "auto", "finetune(settings, run_dir)", False),
    ],
)
def test_a_training_on_one_of_several_gpus_tells_how_to_use_all(
    count: int,
    device: str,
    command: str,
    told: bool,
    gpus: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpus(count)
    with caplog.at_level(logging.INFO, "loraqa"):
        tell_how_to_use_all(device, command, ALONE)
    start = (
        "stop it and start `torchrun --nproc-per-node 4 -m loraqa train --out x` in a new folder."
    )
    assert (start in caplog.text) is told


def test_the_command_for_all_gpus_can_be_run(gpus: Any, caplog: pytest.LogCaptureFixture) -> None:
    gpus(2)
    with caplog.at_level(logging.INFO, "loraqa"):
        for words in ("--out 'a b' --find-learning-rate", "--out x --resume"):
            tell_how_to_use_all("auto", f"loraqa train {words}", ALONE)
    assert "-m loraqa train --out 'a b'` in a new folder." in caplog.messages[0]
    assert "-m loraqa train --out x --resume`." in caplog.messages[1]


def test_options_for_one_process_are_refused_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    check_alone("--dry-run")
    monkeypatch.setattr(launch.os, "environ", environment(0, 2, 0, 2))
    with pytest.raises(InputError, match="--dry-run works in one process"):
        check_alone("--dry-run")


@pytest.mark.parametrize(
    "words", [["train"], ["train", "--out", "run", "--dry-run"], ["--no-such"]]
)
def test_the_first_process_tells_what_is_wrong_before_the_others_end(words: list[str]) -> None:
    """Without `torchrun`, which would end the second process in its moment."""
    ended = {rank: run_as(rank, words) for rank in (0, 1)}
    assert [done.returncode for done in ended.values()] == [2, 2]
    assert ended[0].stderr.startswith("loraqa: ")
    assert ended[1].stderr == ""


def run_as(rank: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `loraqa` as one of two processes."""
    return subprocess.run(
        [sys.executable, "-m", "loraqa", *words],
        env=os.environ | environment(rank, 2, rank, 2),
        capture_output=True,
        text=True,
    )


def test_the_others_end_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(launch.time, "sleep", slept.append)
    with pytest.raises(SystemExit) as ended:
        end_after_the_first(2)
    assert (ended.value.code, slept) == (2, [3.0])


def test_processes_of_one_machine_talk_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interface(place: dict[str, str]) -> str | None:
        """Return where Gloo would listen."""
        monkeypatch.setattr(launch.os, "environ", place)
        with pytest.raises(LookupError), joined():
            pass
        return place.get("GLOO_SOCKET_IFNAME")

    def refuse(_: Place) -> None:
        raise LookupError

    monkeypatch.setattr(processes, "Processes", refuse)
    assert interface(environment(0, 2, 0, 2)) == ("lo0" if sys.platform == "darwin" else "lo")
    assert interface(environment(0, 2, 0, 2) | {"GLOO_SOCKET_IFNAME": "eth1"}) == "eth1"
    assert interface(environment(0, 4, 0, 2)) is None
