"""The folder of a run.

RUN/
    settings.yaml      all settings
    environment.json   versions, machine, threads, device, accelerations, command
    data.json          where the questions came from, their fingerprints and counts
    metrics.jsonl      one line per optimizer step ("train") and per scoring ("evaluation")
    checkpoints/       see `checkpoint`
    adapter/           the result; see `loraqa.adapter`

Importing this loads no PyTorch, so an unusable folder is reported at once.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraqa.errors import InputError, shortened
from loraqa.files import check_folder_writable, read_json, write_json, write_text
from loraqa.train.settings import RunSettings, differences, load_settings

if TYPE_CHECKING:
    from loraqa.train.checkpoint import TrainState

logger = logging.getLogger("loraqa")

Record = Mapping[str, Any]

# The parts of data.json, as messages call them.
_NAMES = {"base": "the base model", "train": "the training data", "dev": "the dev data"}

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

    def choose_settings(
        self,
        config: Path | None,
        flags: Mapping[str, str | int | None],
        overrides: Sequence[str],
        resume: bool,
    ) -> RunSettings:
        """Return the settings of a new or a resumed run, with full paths.

        Later ones win: the settings that a resumed run began with, `config`, `flags`, `overrides`.

        Args:
            config: a YAML file.
            flags: dotted key to value; None leaves a setting as it is.
            overrides: texts such as "lora.rank=8".
            resume: whether the run is resumed.

        Raises:
            InputError: as for `load_settings` and `check_usable`.
        """
        files = [*([self.begun_settings()] if resume else []), *([config] if config else [])]
        given = [f"{key}={value}" for key, value in flags.items() if value is not None]
        chosen = load_settings(files, [*given, *overrides]).with_full_paths()
        self.check_usable(chosen, resume)
        return chosen

    def check_usable(self, settings: RunSettings, resume: bool) -> None:
        """Check that a run can start or be resumed here.

        Raises:
            InputError: the folder is not empty or not writable; on resuming, there is no run, or
                the settings differ.
        """
        if not resume:
            if self.path.is_file():
                raise InputError(f"{self.path} is a file; name a new folder for the run.")
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(
                    f"{self.path} exists already: go on with it (--resume) or name another folder."
                )
            check_folder_writable(self.path)
        else:
            _check_same_settings(self.settings(), settings)

    def start(self, settings: RunSettings, data: Record, environment: Record) -> None:
        """Write the files of a new run."""
        write_text(self.settings_file, settings.to_yaml())
        write_json(self.environment_file, environment)
        write_json(self.data_file, data)

    def resume(self, settings: RunSettings, data: Record, environment: Record) -> None:
        """Check that a run goes on with the same base and data; warn of other changes.

        Raises:
            InputError: base or data have changed.
        """
        if not self.data_file.exists():
            # The run was stopped before its files were written.
            self.start(settings, data, environment)
        before, now = (_fingerprints(d) for d in (read_json(self.data_file), data))
        if before != now:
            changed = sorted(name for name in before | now if before.get(name) != now.get(name))
            raise InputError(
                f"{' and '.join(_NAMES[name] for name in changed).capitalize()} changed since "
                f"{self.path} began: resume with what it began with, or start a new run."
            )
        write_text(self.settings_file, settings.to_yaml())
        for key, value in read_json(self.environment_file).items():
            # A run of an older version may have recorded more.
            current = environment.get(key, value)
            if key != "command" and current != value:
                logger.warning(
                    f"The run began with {key} {value} and goes on with {current}: its result may "
                    "differ by rounding."
                )

    def begun_settings(self) -> Path:
        """Return the file of the settings that the run began with.

        Raises:
            InputError: no run has begun here.
        """
        if not self.settings_file.exists():
            raise InputError(f"There is no run to resume in {self.path}: leave --resume out.")
        return self.settings_file

    def settings(self) -> RunSettings:
        """Return the settings that the run began with. Raises `InputError` if there is no run."""
        return load_settings([self.begun_settings()])

    def append(self, record: Record) -> None:
        """Add a line to the metrics."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Flush the metrics to disk, before a checkpoint that relies on them."""
        with self.metrics_file.open("ab") as file:
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics, up to a line that a crash left incomplete."""
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
        """Remove the metrics after a checkpoint, because those steps will be repeated."""
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
        listed = ", ".join(
            f"{key} was {shortened(repr(old), 60)}, now {shortened(repr(new), 60)}"
            for key, (old, new) in changed.items()
        )
        raise InputError(
            f"A resumed run keeps its settings, but {listed}: restore them, or start a new run."
        )


def _fingerprints(data: Record) -> dict[str, str]:
    return {
        name: part["sha256"] or part.get("revision") or part["source"]
        for name, part in data.items()
    }
