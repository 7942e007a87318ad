"""The commands of the recipes, with a tiny model on this machine, and scripts for Slurm.

Each script is run as its recipe holds it; only variables that the recipe names have other values.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from tests.conftest import town_passages
from tests.distributed.together import free_port
from tests.recipes.conftest import RECIPES, SLURM, container, skypilot

from loraqa.squad import write_official
from loraqa.train.run import RunDirectory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts need Linux")

STEPS, SAVED_EVERY = 120, 5
PATIENCE = 120.0

# What a recipe calls. `srun` starts one task; Slurm signals every process of a step, and not only
# the one that the step began with.
COMMANDS = {
    "srun": 'echo $$ > step; SLURM_NODEID=0 exec "$@"',
    "scontrol": 'case $1 in show) echo localhost ;; requeue) echo "$2" > requeued ;; esac',
    "scancel": """
        tell() {
            for child in $(cat /proc/"$1"/task/*/children); do tell "$child"; done
            kill -TERM "$1"
        }
        [[ "$*" == "--signal=TERM $SLURM_JOB_ID" ]] && tell "$(cat step)"
    """,
}


@dataclass
class Place:
    """A folder with settings, data and commands, and the scripts that run there."""

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    # Slurm's script makes the port from it.
    job: str = field(default_factory=lambda: str(free_port()))

    @property
    def settings(self) -> Path:
        return self.folder / "train.yaml"

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder / "run")

    def start(
        self, command: Sequence[str | Path], variables: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            env=self.environment | variables,
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def wait_for_checkpoint(self, process: subprocess.Popen[str], after: int = 0) -> None:
        until(lambda: process.poll() is not None or self.newest_checkpoint() > after)
        assert process.poll() is None, process.communicate()[1]

    def steps(self) -> list[int]:
        return [record["step"] for record in self.run.metrics()]

    def newest_checkpoint(self) -> int:
        """Return its step, or 0 if there is none."""
        names = [path.name for path in self.run.checkpoints.glob("step-*")]
        return max((int(name.partition("-")[2]) for name in names), default=0)


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a script that succeeds; return its messages."""
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    return told


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Iterator[Place]:
    write_official(tmp_path / "train.json", town_passages(8), "1.1")
    settings = {
        "model": {"source": str(tiny_folder), "dtype": "float32"},
        "data": {"train": str(tmp_path / "train.json")},
        "optimisation": {"questions_per_step": 4, "epochs": STEPS, "max_steps": STEPS},
        "checkpoint": {"every": SAVED_EVERY},
        # Each process would start another.
        "speed": {"without": ["preparing-process"]},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, script in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(RECIPES.parent / "src"),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    place = Place(tmp_path, environment)
    yield place
    for process in place.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_a_training_goes_on_after_each_stop(place: Place) -> None:
    """One run, because each recipe finds out in the same way that it has begun."""
    pods = start_pods(place)
    place.wait_for_checkpoint(pods[0])
    # Kubernetes signals the first process of a container alone.
    pods[1].terminate()
    for pod in pods:
        pod.communicate(timeout=PATIENCE)
        assert pod.returncode != 0
    evicted = place.steps()[-1]
    assert place.newest_checkpoint() == evicted < STEPS

    # Slurm queues a stopped training again, which is to go on.
    job = start_slurm(place, processes=2, restarts=1)
    place.wait_for_checkpoint(job, after=evicted)
    job.terminate()
    assert "Stopped by SIGTERM" in finish(job)
    assert (place.folder / "requeued").read_text().strip() == place.job
    stopped = place.steps()[-1]
    assert evicted < place.newest_checkpoint() == stopped < STEPS

    finish(start_skypilots_command(place))
    assert place.steps() == list(range(1, STEPS + 1))
    assert (place.run.adapter / "adapter_model.safetensors").exists()


def test_slurm_does_not_queue_a_training_again_that_is_done(place: Place) -> None:
    (place.folder / "commands" / "srun").write_text("#!/bin/bash\n")
    finish(start_slurm(place, processes=1))
    assert not (place.folder / "requeued").exists()


def test_slurm_does_not_queue_a_training_again_that_fails(place: Place) -> None:
    place.settings.write_text("no: settings")
    process = start_slurm(place, processes=1)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "settings" in told
    assert not (place.folder / "requeued").exists()


def start_slurm(place: Place, processes: int, restarts: int = 0) -> subprocess.Popen[str]:
    """Start the script of a job on one machine."""
    job = {
        "SLURM_JOB_ID": place.job,
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "PROCESSES": str(processes),
    }
    if restarts:
        job["SLURM_RESTART_COUNT"] = str(restarts)
    return place.start(["bash", SLURM, place.settings, place.run.path], job)


def start_pods(place: Place) -> list[subprocess.Popen[str]]:
    """Start the command of each pod of the job, with one process each."""
    recipe = container()
    command = [*recipe["command"], *recipe["args"]]
    variables = {one["name"]: one["value"] for one in recipe["env"]}
    variables |= {
        "PROCESSES": "1",
        "FIRST_POD": "localhost",
        "PORT": str(free_port()),
        "SETTINGS": str(place.settings),
        "RUN": str(place.run.path),
    }
    indices = range(int(variables["MACHINES"]))
    return [place.start(command, variables | {"JOB_COMPLETION_INDEX": str(i)}) for i in indices]


def start_skypilots_command(place: Place) -> subprocess.Popen[str]:
    """Start the command of a task on one machine, with two processes."""
    task = skypilot()
    variables = {name: str(value) for name, value in task["envs"].items()}
    variables |= {
        "PROCESSES": "2",
        "PORT": str(free_port()),
        "SETTINGS": str(place.settings),
        "RUN": str(place.run.path),
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_NODES": "1",
        "SKYPILOT_TASK_ID": "task",
    }
    return place.start(["bash", "-c", task["run"]], variables)
