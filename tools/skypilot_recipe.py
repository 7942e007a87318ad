"""Read recipes/skypilot.yaml with SkyPilot, and write its schemas, with which tests check the file.

`make recipes` runs this in an environment of its own, because SkyPilot and loraqa need different
versions of some libraries.
"""

import json
from pathlib import Path

import sky
from sky.utils import schemas

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "tests" / "recipes" / "skypilot-schemas.json"


def main() -> None:
    """Print what SkyPilot understands, and write the schemas."""
    task = sky.Task.from_yaml(str(ROOT / "recipes" / "skypilot.yaml"))
    print(f"SkyPilot {sky.__version__} reads {task.name}: {task.num_nodes} machines")
    for resources in task.resources:
        print(f"  {resources}, when lost: {resources.job_recovery}")
    for path, storage in task.storage_mounts.items():
        print(f"  {path}: bucket {storage.name}, {storage.mode.value}")
    found = {
        "version": sky.__version__,
        "task": schemas.get_task_schema(),
        "resources": schemas.get_resources_schema(),
        "storage": schemas.get_storage_schema(),
    }
    SCHEMAS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
