"""Which checkpoints a run has, and whether they are whole. Importing this loads no PyTorch.

A checkpoint has a `manifest.json` with size and SHA-256 of each of its other files.
"""

import contextlib
import filecmp
import logging
import re
from collections.abc import Mapping
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
    for name, fingerprint in _read_whole_manifest(checkpoint).items():
        _check_file(checkpoint, name, fingerprint)


def whole_adapter(checkpoint: Path, run: Path) -> Path:
    """Return a folder with the adapter of a checkpoint as it was written.

    That is the checkpoint's own folder or, if it is damaged, the run's if it was made from it.

    Raises:
        InputError: neither is as it was written.
        OSError: the checkpoint cannot be read, and the run has no such adapter.
    """
    try:
        _check_adapter(_read_whole_manifest(checkpoint), checkpoint)
    except (InputError, OSError):
        if not _has_adapter_of(checkpoint, run):
            raise
        return run / ADAPTER
    return checkpoint / ADAPTER


def write_manifest(checkpoint: Path) -> None:
    """Write the manifest of all files of a checkpoint."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    fingerprints = {path.relative_to(checkpoint).as_posix(): _fingerprint(path) for path in files}
    manifest = {name: {"bytes": size, "sha256": sha} for name, (size, sha) in fingerprints.items()}
    write_json(checkpoint / _MANIFEST, manifest)


def _has_adapter_of(checkpoint: Path, run: Path) -> bool:
    """Return whether the run's adapter is the checkpoint's as it was written."""
    try:
        manifest = _read_whole_manifest(checkpoint)
    except (InputError, OSError):
        # Without a manifest, two equal copies show that neither was damaged.
        files = [name for name in _REQUIRED if name.startswith(f"{ADAPTER}/")]
        equal, _, _ = filecmp.cmpfiles(checkpoint, run, files, shallow=False)
        return len(equal) == len(files)
    with contextlib.suppress(InputError, OSError):
        _check_adapter(manifest, run)
        return True
    return False


def _check_adapter(manifest: Mapping[str, Fingerprint], place: Path) -> None:
    """Check that the adapter in a run or a checkpoint is the one in the manifest."""
    for name, fingerprint in manifest.items():
        if name.startswith(f"{ADAPTER}/"):
            _check_file(place, name, fingerprint)


def _read_whole_manifest(checkpoint: Path) -> dict[str, Fingerprint]:
    """Return the manifest. Raises `InputError` if it does not list what every one lists."""
    manifest = _read_manifest(checkpoint)
    if missing := _REQUIRED - manifest.keys():
        raise InputError(
            f"The checkpoint {checkpoint} is broken: its manifest does not list {min(missing)}."
        )
    return manifest


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
