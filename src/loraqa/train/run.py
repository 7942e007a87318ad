"""The folder of a run.

RUN/
    settings.yaml      everything that was chosen
    environment.json   versions, machine, threads, device, command, what was compiled
    data.json          where the questions came from, their fingerprints and counts
    metrics.jsonl      one line per optimizer step ("train") and per scoring ("evaluation")
    checkpoints/       see `checkpoint`
    adapter/           the result; see `loraqa.adapter`

Imports no PyTorch, so that a folder that cannot be used is told at once.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraqa.errors import InputError
from loraqa.files import check_folder_writable, read_json, write_json, write_text
from loraqa.train.settings import RunSettings, differences, load_settings

if TYPE_CHECKING:
    from loraqa.train.checkpoint import TrainState

logger = logging.getLogger("loraqa")

Record = Mapping[str, Any]

# Settings that may change when a run is resumed: they bound memory, disk and time, or say where the
# same base and the same data lie.
_FREE_ON_RESUME = (
    "optimisation.tokens_per_batch",
    "checkpoint.",
    "data.",
    "speed.",
    "model.source",
    "model.revision",
)


class RunDirectory:
    """Paths and files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "settings.yaml"
        self.environment_file = path / "environment.json"
        self.data_file = path / "data.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"

    def check_usable(self, settings: RunSettings, resume: bool) -> None:
        """Raise `InputError` where a new run would overwrite, or a resumed one would differ.

        Also where there is no run to resume, or a new one cannot be written.
        """
        if not resume:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(
                    f"{self.path} exists already: go on with it (--resume) or name another folder."
                )
            check_folder_writable(self.path)
        else:
            _check_same_settings(self.settings(), settings)

    def start(self, settings: RunSettings, data: Record, environment: Record) -> None:
        """Write what a new run begins with."""
        write_text(self.settings_file, settings.to_yaml())
        write_json(self.environment_file, environment)
        write_json(self.data_file, data)

    def resume(self, settings: RunSettings, data: Record, environment: Record) -> None:
        """Check that a run goes on with the same base and data; say where other things changed.

        Raises:
            InputError: base or data are not what the run began with.
        """
        if not self.data_file.exists():
            # The run was stopped before it had begun.
            self.start(settings, data, environment)
        before, now = (_fingerprints(d) for d in (read_json(self.data_file), data))
        if before != now:
            changed = sorted(name for name in before | now if before.get(name) != now.get(name))
            raise InputError(
                f"{' and '.join(changed).capitalize()} are not what {self.path} began with: resume "
                "with the same, or start a new run."
            )
        write_text(self.settings_file, settings.to_yaml())
        for key, value in read_json(self.environment_file).items():
            # What nothing is left to be done with is not told.
            current = environment.get(key, value)
            if key != "command" and current != value:
                logger.warning(
                    f"The run began with {key} {value} and goes on with {current}: its last bits "
                    "may differ."
                )

    def begun_settings(self) -> Path:
        """The file of the settings that the run began with.

        Raises:
            InputError: there is none, so no run has begun here.
        """
        if not self.settings_file.exists():
            raise InputError(f"There is no run to resume in {self.path}: leave --resume out.")
        return self.settings_file

    def settings(self) -> RunSettings:
        """The settings that the run began with. Raises `InputError` where there are none."""
        return load_settings([self.begun_settings()])

    def append(self, record: Record) -> None:
        """Add a line to the metrics."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def flush(self) -> None:
        """See that the metrics are on disk before a checkpoint that counts on them."""
        with self.metrics_file.open("ab") as file:
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the metrics, up to one that a crash left half written."""
        if not self.metrics_file.exists():
            return []
        records = []
        for line in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def cut_back(self, state: "TrainState") -> None:
        """Forget what the metrics tell beyond a checkpoint: it will happen again."""
        evaluated = -1 if state.latest is None else state.latest.step
        last = {"train": state.step, "evaluation": evaluated}
        kept = [r for r in self.metrics() if r["step"] <= last[r["kind"]]]
        write_text(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))


def _check_same_settings(before: RunSettings, after: RunSettings) -> None:
    changed = {
        key: values
        for key, values in differences(before, after).items()
        if not key.startswith(_FREE_ON_RESUME)
    }
    if changed:
        listed = ", ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in changed.items())
        raise InputError(
            f"A resumed run goes on with its own settings, but {listed}: take these back, or "
            "start a new run."
        )


def _fingerprints(data: Record) -> dict[str, str]:
    return {
        name: part["sha256"] or part.get("revision") or part["source"]
        for name, part in data.items()
    }
