"""The recipes as their own tools read them."""

from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SETTINGS = RECIPES / "train.yaml"
SLURM = RECIPES / "slurm.sh"


def kubernetes() -> dict[str, dict[str, Any]]:
    """Return the objects of the manifest by kind."""
    objects = yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())
    return {one["kind"]: one for one in objects}


def container() -> dict[str, Any]:
    """Return the only container of the job."""
    (found,) = kubernetes()["Job"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def skypilot() -> dict[str, Any]:
    """Return the task."""
    return dict(yaml.safe_load((RECIPES / "skypilot.yaml").read_text()))
