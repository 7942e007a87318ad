"""Which checkpoints a run has, and whether they are whole. Importing this loads no PyTorch.

A checkpoint has a `manifest.json` with size and SHA-256 of each of its other files.
"""

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

from loraqa.errors import InputError, explain
from loraqa.files import read_json, sha256, write_json

logger = logging.getLogger("loraqa")

ADAPTER = "adapter"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
_MANIFEST = "manifest.json"
# What every manifest lists.
_REQUIRED = {
    f"{ADAPTER}/adapter_config.json",
    f"{ADAPTER}/adapter_model.safetensors",
    OPTIMIZER,
    STATE,
}

Fingerprint = tuple[int, str]


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return checkpoints / f"step-{step:06d}"


def step_of(checkpoint: Path | None) -> int:
    """Return the step of a checkpoint, 0 if there is none."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def saved_steps(checkpoints: Path) -> list[int]:
    """Return the steps that have a checkpoint, whole or not, in order."""
    named = (path for path in checkpoints.glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(map(step_of, named))


def newest_whole(checkpoints: Path) -> Path | None:
    """Return the newest whole checkpoint. A warning names those that are not or cannot be read."""
    steps = saved_steps(checkpoints)
    for step in reversed(steps):
        checkpoint = checkpoint_folder(checkpoints, step)
        try:
            check_whole(checkpoint)
        except (InputError, OSError) as error:
            logger.warning(f"{explain(error)[0]} This checkpoint is not used.")
        else:
            return checkpoint
    if steps:
        logger.warning(
            f"{checkpoints} holds no whole checkpoint, so the training STARTS AGAIN FROM STEP 0."
        )
    return None


def newest_copy(checkpoints: Path, name: str) -> Path | None:
    """Return a file in the newest checkpoint that holds it as it was written."""
    for step in reversed(saved_steps(checkpoints)):
        checkpoint = checkpoint_folder(checkpoints, step)
        with contextlib.suppress(InputError, KeyError, OSError):
            _check_file(checkpoint, name, _read_manifest(checkpoint)[name])
            return checkpoint / name
    return None


def check_whole(checkpoint: Path) -> None:
    """Check that all files of a checkpoint are as they were written.

    Raises:
        InputError: one is missing, or differs from the manifest.
        OSError: one cannot be read.
    """
    manifest = _read_manifest(checkpoint)
    if missing := _REQUIRED - manifest.keys():
        raise InputError(
            f"The checkpoint {checkpoint} is broken: its manifest does not list {min(missing)}."
        )
    for name, fingerprint in manifest.items():
        _check_file(checkpoint, name, fingerprint)


def write_manifest(checkpoint: Path) -> None:
    """Write the manifest of all files of a checkpoint."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    fingerprints = {path.relative_to(checkpoint).as_posix(): _fingerprint(path) for path in files}
    manifest = {name: {"bytes": size, "sha256": sha} for name, (size, sha) in fingerprints.items()}
    write_json(checkpoint / _MANIFEST, manifest)


def _read_manifest(checkpoint: Path) -> dict[str, Fingerprint]:
    try:
        manifest: dict[str, Any] = read_json(checkpoint / _MANIFEST)
        return {name: (file["bytes"], file["sha256"]) for name, file in manifest.items()}
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"The checkpoint {checkpoint} is broken: its manifest cannot be read."
        ) from None


def _check_file(checkpoint: Path, name: str, fingerprint: Fingerprint) -> None:
    path = checkpoint / name
    if not path.is_file():
        raise InputError(f"The checkpoint {checkpoint} is broken: {name} is missing.")
    if _fingerprint(path) != fingerprint:
        raise InputError(f"The checkpoint {checkpoint} is broken: {name} was changed or cut.")


def _fingerprint(path: Path) -> Fingerprint:
    return path.stat().st_size, sha256(path)
