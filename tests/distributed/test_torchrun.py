"""The command line under the real torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.distributed.together import be_on_loopback, free_port
from tests.train.conftest import PASSAGES

from loraqa.distributed import launch
from loraqa.distributed.ranks import PeerError
from loraqa.errors import InputError
from loraqa.files import read_json
from loraqa.squad import write_official
from loraqa.train.stopping import StoppedError


def torchrun(*arguments: object) -> tuple[int, str, str]:
    """Run `loraqa` in two processes; return exit status, output and errors."""
    environment = dict(os.environ)
    be_on_loopback(environment)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", "loraqa"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_two_processes_train_and_one_talks(tiny_folder: Path, tmp_path: Path) -> None:
    write_official(tmp_path / "train.json", PASSAGES, "1.1")
    status, out, err = torchrun(
        *("train", "--out", tmp_path / "run", "--model", tiny_folder),
        *("--train", tmp_path / "train.json", "--set", "speed.without=all"),
        *("--set", "optimisation.max_steps=2", "--set", "data.held_out=0", "--json"),
    )
    assert status == 0, err
    result = json.loads(out)
    assert (result["run"], result["steps"]) == (str(tmp_path / "run"), 2)
    assert [line.split()[0] for line in err.splitlines()].count("loraqa:") == 4
    assert err.count("step 1/2") == 1
    found = read_json(tmp_path / "run" / "environment.json")
    assert found["processes"] == 2
    assert found["command"].startswith("torchrun --nproc-per-node 2 -m loraqa train --out")


def test_an_option_for_one_process_is_refused_once(tmp_path: Path) -> None:
    status, _, err = torchrun("train", "--out", tmp_path / "run", "--dry-run")
    assert status == 1
    assert err.count("loraqa: --dry-run works in one process; start it without torchrun.") == 1


@pytest.mark.parametrize(("rank", "raised", "told"), [(0, SystemExit, 1), (1, PeerError, 0)])
def test_torchrun_sees_the_lost_process_end_first(
    rank: int,
    raised: type[BaseException],
    told: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(launch.time, "sleep", slept.append)
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    with pytest.raises(raised), launch._lost_peers_told(rank):
        raise PeerError("Lost.")
    assert slept == [3.0]
    assert caplog.messages.count("Lost.") == told


def test_the_others_keep_back_what_the_first_says(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(launch.time, "sleep", slept.append)
    with pytest.raises(InputError, match="Rank 1: Wrong."), launch._not_repeating_the_first(1):
        raise InputError("Wrong.")
    assert slept == [3.0]
    with pytest.raises(SystemExit) as ended, launch._not_repeating_the_first(1):
        raise StoppedError("Stopped.", launch.signal.SIGTERM)
    assert ended.value.code == 143
