"""Each recipe in the eyes of its own tool: shell and Slurm, schemas of Kubernetes and SkyPilot."""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from tests.recipes.conftest import SETTINGS, SLURM, container, kubernetes, skypilot

from loraqa.train.settings import load_settings

SHELLCHECK = Path(sysconfig.get_path("scripts")) / "shellcheck"
# The oldest and the newest whose schemas are at hand and that have all that the manifest uses.
KUBERNETES = ["1.31", kubernetes_validate.latest_version()]

SCRIPTS: dict[str, Callable[[], str]] = {
    "slurm": SLURM.read_text,
    "kubernetes": lambda: "#!/bin/bash\nset -eu\n" + container()["args"][0],
    "skypilot": lambda: "#!/bin/bash\n" + skypilot()["run"],
}


def test_the_settings_are_loraqas() -> None:
    assert load_settings([SETTINGS]).data.train == "rajpurkar/squad:train"


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_no_process_unpickles_what_others_send(script: Callable[[], str]) -> None:
    """torchrun does with every `--rdzv-backend` that finds ranks by itself, such as c10d."""
    assert "--rdzv-backend" not in script()
    assert all(option in script() for option in ("--node-rank", "--master-addr", "--master-port"))


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_shellcheck_finds_nothing(script: Callable[[], str], tmp_path: Path) -> None:
    file = tmp_path / "script.sh"
    file.write_text(script())
    # JOB_COMPLETION_INDEX and the like come from outside, so they look unset.
    command = [SHELLCHECK, "--enable=all", "--exclude=SC2154,SC2250,SC2312", file]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    subprocess.run(["bash", "-n", file], check=True)


@pytest.mark.skipif(
    shutil.which("sbatch") is None, reason="no Slurm here (`apt-get install slurm-client`)"
)
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "--bogus"),
        ("#SBATCH --no-such-option=1", "--no-such-option"),
        ("#SBATCH --signal=B:NONE@300", "signal"),
    ],
)
def test_sbatch_knows_every_option(line: str, complaint: str, tmp_path: Path) -> None:
    """It reads options in order, and stops at the first that it does not know."""
    script = tmp_path / "script.sh"
    first, rest = SLURM.read_text().split("\nset -", 1)
    script.write_text(f"{first}\n{line}\n#SBATCH --bogus=1\nset -{rest}")
    (tmp_path / "slurm.conf").write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    found = subprocess.run(
        ["sbatch", "--test-only", script, "settings", "run"],
        env={"SLURM_CONF": str(tmp_path / "slurm.conf")} | os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode != 0
    assert complaint in found.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("kind", ["Service", "PersistentVolumeClaim", "Job"])
def test_kubernetes_knows_every_field(kind: str, version: str) -> None:
    """Strict schemas also refuse fields that they do not know."""
    wanted = kubernetes()[kind]
    kubernetes_validate.validate(wanted, version, strict=True)
    wanted["spec"]["noSuchField"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="noSuchField"):
        kubernetes_validate.validate(wanted, version, strict=True)


def test_pods_find_each_other_and_their_files() -> None:
    """What no schema compares: names that must agree."""
    objects = kubernetes()
    job, name = objects["Job"], objects["Service"]["metadata"]["name"]
    pod = job["spec"]["template"]["spec"]
    environment = {one["name"]: one["value"] for one in container()["env"]}
    assert pod["subdomain"] == name
    first = f"{job['metadata']['name']}-0.{name}"
    assert environment["FIRST_POD"] == first
    selector = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert objects["Service"]["spec"]["selector"] == selector
    assert int(environment["MACHINES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container()["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert mounts["storage"] in Path(environment["RUN"]).parents
    assert mounts["settings"] in Path(environment["SETTINGS"]).parents


def schemas() -> dict[str, Any]:
    """SkyPilot's schemas, as `make recipes` writes them."""
    text = (Path(__file__).parent / "skypilot-schemas.json").read_text()
    return dict(json.loads(text))


def test_skypilot_knows_every_field() -> None:
    task, known = skypilot(), schemas()
    jsonschema.validate(task, known["task"])
    jsonschema.validate(task["resources"], known["resources"])
    for storage in task["file_mounts"].values():
        jsonschema.validate(storage, known["storage"])
    for part in ("task", "resources", "storage"):
        with pytest.raises(jsonschema.ValidationError, match="no_such_field"):
            jsonschema.validate({"no_such_field": 1}, known[part])


def test_the_run_on_a_cloud_is_in_the_bucket() -> None:
    task = skypilot()
    (bucket,) = task["file_mounts"]
    assert Path(bucket) in Path(task["envs"]["RUN"]).parents
    assert (SETTINGS.parents[1] / task["envs"]["SETTINGS"]).exists()
