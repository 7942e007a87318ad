"""The folder of a run.

RUN/
    settings.yaml      all settings
    environment.json   versions, machine, threads, device, accelerations, command
    data.json          where the questions came from, their fingerprints and counts
    metrics.jsonl      one line per optimizer step ("train") and per scoring ("evaluation")
    checkpoints/       see `checkpoint`
    adapter/           the result; see `loraqa.adapter`
    .lock              locked while a process trains here

Every checkpoint holds copies of the first three files. Where a file is damaged, the copy replaces
it. Importing this loads no PyTorch, so an unusable folder is reported at once.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from loraqa.adapter.info import BaseInfo
from loraqa.distributed.ranks import Ranks
from loraqa.errors import InputError, explain, shortened, some_of
from loraqa.files import (
    append_line,
    check_folder_writable,
    contents,
    flush,
    naming,
    one_writer,
    read_json,
    sweep,
    to_json,
    write_text,
)
from loraqa.train.manifest import newest_copy, saved_steps
from loraqa.train.settings import RunSettings, choose_settings, differences, dotted, load_settings

if TYPE_CHECKING:
    from loraqa.train.checkpoint import TrainState

logger = logging.getLogger("loraqa")

Record = Mapping[str, Any]

# The parts of data.json, as messages call them.
_NAMES = {
    "train": "the training data",
    "dev": "the dev data",
    "template": "the template",
    "start": "the adapter at lora.start",
}
# Parts that are compared only where both are known. A run of an older version has not recorded its
# template, and a checkpoint makes the start superfluous.
_IF_KNOWN = {"template", "start"}

# The part of data.json that holds the hash of the settings with which the run began.
_SETTINGS = "settings"

# Settings that may change when a run is resumed: they bound memory, disk and time, or say where the
# same base and the same data lie.
_FREE_ON_RESUME = (
    "optimisation.tokens_per_batch",
    "checkpoint.",
    "data.train",
    "data.dev",
    "data.on_bad",
    "speed.",
    "model.source",
    "model.revision",
)
# Free settings that change the order in which numbers are summed. `speed.` changes it too, but only
# by the accelerations, which `environment.json` records.
_ROUNDING = ("optimisation.tokens_per_batch",)


class RunDirectory:
    """Paths and files of a run.

    Args:
        path: the folder.
        launcher: what stands before `loraqa train` in the command that trains here.

    Attributes:
        texts: the texts of the files that every checkpoint copies, by name, once the run has begun
            or is resumed.
    """

    def __init__(self, path: Path, launcher: str = "") -> None:
        self.path = path
        self.launcher = launcher
        self.settings_file = path / "settings.yaml"
        self.environment_file = path / "environment.json"
        self.data_file = path / "data.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.texts: dict[str, str] = {}

    @property
    def command_to_resume(self) -> str:
        """The command that goes on with the run."""
        return f"{self.launcher}loraqa train --out {quote(str(self.path))} --resume"

    def choose_settings(
        self,
        config: Path | None,
        flags: Mapping[str, str | int | None],
        overrides: Sequence[str],
        resume: bool,
    ) -> RunSettings:
        """Return the settings of a new or a resumed run, with full paths.

        Later ones win: the settings that a resumed run began with, `config`, `flags`, `overrides`.
        See the function of the same name.

        Raises:
            InputError: as for that function and `check_usable`.
        """
        files = [*([self.begun_settings()] if resume else []), *([config] if config else [])]
        chosen = choose_settings(files, flags, overrides)
        self.check_usable(chosen, resume)
        return chosen

    def check_usable(self, settings: RunSettings, resume: bool) -> None:
        """Check that a run can start or be resumed here. Nothing is written.

        Raises:
            InputError: the folder is not empty or not writable; on resuming, there is no run, or
                the settings differ.
        """
        if resume:
            _check_same_settings(self.settings(), settings)
        else:
            self._check_new()

    def _check_new(self) -> None:
        """Check that a new run can be written here."""
        if self.path.is_file():
            raise InputError(f"{self.path} is a file; name a new folder for the run.")
        if self._has_begun():
            raise InputError(
                f"{self.path} exists already: go on with it (--resume) or name another folder."
            )
        if self.path.exists() and contents(self.path):
            raise InputError(f"{self.path} is not empty and holds no run; name another folder.")
        check_folder_writable(self.path)

    def _has_begun(self) -> bool:
        """Return whether there is a run here, even if its settings file is lost."""
        return self.settings_file.exists() or bool(saved_steps(self.checkpoints))

    @contextmanager
    def writing(self, settings: RunSettings, resume: bool) -> Iterator[None]:
        """Let no other process write to the run, and remove what killed processes left in it.

        Raises:
            InputError: another process trains here, or `check_usable` raises it.
        """
        self.check_usable(settings, resume)
        with one_writer(self.path):
            # Another process may have trained here until now.
            self.check_usable(settings, resume)
            for folder in (self.path, self.checkpoints):
                sweep(folder)
            if self.adapter.exists():
                logger.info(
                    f"{self.path} has its adapter already; base, data and checkpoints are compared "
                    "with what it began with, and what is missing is trained again."
                )
            yield

    @contextmanager
    def telling_what_is_kept(self) -> Iterator[None]:
        """If the work is ended at once, or the disk fails, log what is kept of the run."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, OSError):
            logger.info(self.what_is_kept())
            raise

    def what_is_kept(self) -> str:
        """Return a sentence that says what is kept, and how to go on."""
        if not self._has_begun():
            return f"The training has not begun; nothing is kept in {self.path}."
        steps = saved_steps(self.checkpoints)
        if not steps:
            return f"No checkpoint was written yet; start again with `{self.command_to_resume}`."
        return f"The checkpoint of step {steps[-1]} is kept; go on with `{self.command_to_resume}`."

    def start(self, settings: RunSettings, data: Record, environment: Record) -> None:
        """Write the files of a new run."""
        self.texts = {
            self.settings_file.name: settings.to_yaml(),
            self.environment_file.name: to_json(environment),
            self.data_file.name: to_json({**data, _SETTINGS: data.get(_SETTINGS, _hash(settings))}),
        }
        for name, text in self.texts.items():
            write_text(self.path / name, text)

    def resume(self, settings: RunSettings, data: Record, environment: Record) -> None:
        """Check that a run goes on with the same base and data; warn of other changes.

        Damaged files are mended.

        Raises:
            InputError: base or data have changed.
        """
        self._mend_settings()
        began = self._recorded(self.data_file, data, partial(_changed_parts, now=data))
        if changed := _changed_parts(began, data):
            named, source = " and ".join(changed), began["base"]["source"]
            model = f" with {source}" if source != data["base"]["source"] else ""
            raise InputError(
                f"{named[0].upper()}{named[1:]} changed since "
                f"{self.path} began{model}: resume with what it began with, or start a new run."
            )
        surroundings = self._recorded(self.environment_file, environment, dict.items)
        changes = _changes(self._last_settings(began), settings, surroundings, environment)
        _warn_of_changes(changes, settings.lora.dropout)
        self.start(settings, began, surroundings)

    def begun_settings(self) -> Path:
        """Return the file that says with which settings the run began.

        It is the copy in a checkpoint if the run's own file is damaged, or was changed.

        Raises:
            InputError: no run has begun here, or the settings are lost.
        """
        copy = newest_copy(self.checkpoints, self.settings_file.name)
        if copy is not None:
            return copy if self._damage_of_settings(copy) else self.settings_file
        if not self.settings_file.exists():
            raise InputError(f"There is no run to resume in {self.path}: leave --resume out.")
        try:
            load_settings([self.settings_file])
        except InputError as error:
            raise InputError(
                "The settings of the run are lost, and no checkpoint holds a copy "
                f"({str(error).removesuffix('.')}); write {self.settings_file} again, or start a "
                "new run in another folder."
            ) from None
        return self.settings_file

    def settings(self) -> RunSettings:
        """Return the settings that the run began with. Raises as `begun_settings` does."""
        return load_settings([self.begun_settings()])

    def _last_settings(self, began: Record) -> RunSettings:
        """Return the settings of the newest checkpoint; without one, those in the settings file.

        A warning says if these are not the settings that the run began with.
        """
        if copy := newest_copy(self.checkpoints, self.settings_file.name):
            return load_settings([copy])
        settings = self.settings()
        if began.get(_SETTINGS, _hash(settings)) != _hash(settings):
            logger.warning(
                f"{self.settings_file} was changed since the run began, and no checkpoint holds a "
                "copy; the run goes on with what it says now."
            )
        return settings

    def append(self, record: Record) -> None:
        """Add a line to the metrics."""
        append_line(self.metrics_file, json.dumps(record, allow_nan=False))

    def flush(self) -> None:
        """Flush the metrics to disk, before a checkpoint that relies on them."""
        if self.metrics_file.exists():
            flush(self.metrics_file)

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics. A warning names damaged lines, which are left out.

        A file that cannot be read is renamed, so that it is not written over.
        The last line may be one that a crash left incomplete.
        """
        if not self.metrics_file.exists():
            return []
        try:
            with naming(self.metrics_file, "read"):
                text = self.metrics_file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self._set_aside(self.metrics_file)
            logger.warning(f"The metrics are lost: {explain(error)[0]}")
            return []
        *lines, _ = records = [_parse_record(line) for line in text.split("\n")]
        if damaged := [str(number) for number, record in enumerate(lines, 1) if record is None]:
            logger.warning(
                f"Damaged lines of {self.metrics_file} are left out: {some_of(damaged)}."
            )
        return [record for record in records if record is not None]

    def cut_back(self, state: "TrainState") -> None:
        """Remove the metrics after a checkpoint, because those steps will be repeated."""
        evaluated = -1 if state.latest is None else state.latest.step
        last = {"train": state.step, "evaluation": evaluated}
        kept = [r for r in self.metrics() if r["step"] <= last[r["kind"]]]
        lost = state.step - len({r["step"] for r in kept if r["kind"] == "train"})
        if lost:
            logger.warning(
                f"{self.metrics_file} lacks {lost:,} of the {state.step:,} steps before this "
                "checkpoint, which were damaged; the training itself lacks nothing."
            )
        write_text(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))

    def _mend_settings(self) -> None:
        """Replace the settings file if it is damaged, or differs from what was trained with."""
        copy = newest_copy(self.checkpoints, self.settings_file.name)
        if copy is not None and (damage := self._damage_of_settings(copy)):
            self._set_aside(self.settings_file)
            write_text(self.settings_file, load_settings([copy]).to_yaml())
            logger.warning(
                f"The settings file of the run was damaged or changed ({damage}); {copy} replaces "
                "it."
            )

    def _damage_of_settings(self, copy: Path) -> str:
        """Return how the settings file differs from a copy, or why it cannot be read; else ""."""
        used = load_settings([copy])
        try:
            return _difference(used, load_settings([self.settings_file]))
        except InputError as error:
            return str(error).rstrip(".")

    def _recorded(self, file: Path, now: Record, read: Callable[[Any], object]) -> Record:
        """Return what a file recorded when the run began; `now` if that is lost or new.

        `read` fails for a value that is no such record.
        """
        copy = newest_copy(self.checkpoints, file.name)
        used: Record | None = None if copy is None else read_json(copy)
        try:
            found = read_json(file)
            read(found)
        except (InputError, OSError, AttributeError, KeyError, TypeError, ValueError):
            found = None
        if copy is not None and found != used:
            self._set_aside(file)
            logger.warning(f"{file} was damaged or changed; {copy} replaces it.")
        elif found is None and file.exists():
            self._set_aside(file)
            logger.warning(
                f"{file} is damaged, and no checkpoint holds a copy; what it said is lost."
            )
        return used or found or now

    def _set_aside(self, file: Path) -> None:
        """Keep a damaged file under another name."""
        with contextlib.suppress(OSError):
            file.replace(file.with_name(f"{file.name}.damaged"))


def choose_together(ranks: Ranks, choose: Callable[[], RunSettings]) -> RunSettings:
    """Return the settings that the first process chooses, which alone looks at the run's folder.

    Raises:
        InputError: `choose` raises it.
        PeerError: another process has ended.
    """
    if ranks.size == 1:
        return choose()
    chosen = ranks.of_first(lambda: choose().model_dump(mode="json"), "rank 0's settings")
    return RunSettings.model_validate_json(json.dumps(chosen))


def check_same(ranks: Ranks, facts: Record) -> None:
    """Check that all processes have the same base and data.

    Raises:
        InputError: they differ.
        PeerError: another process has ended.
    """
    ranks.meet("the other ranks to load the model and to encode the data")
    first, *others = ranks.gather(facts, "what the other ranks train with")
    for rank, other in enumerate(others, 1):
        if changed := _changed_parts(first, other):
            named = " and ".join(changed)
            raise InputError(
                f"{named[0].upper()}{named[1:]} of rank {rank} differ from those of rank 0; give "
                "all machines the same files."
            )


def warn_of_other_accelerations(ranks: Ranks, accelerations: Sequence[str]) -> None:
    """Warn if processes differ in their accelerations, which each of them has tried by itself.

    Raises:
        PeerError: another process has ended.
    """
    first, *others = ranks.gather(list(accelerations), "the accelerations of the other ranks")
    if differing := [rank for rank, other in enumerate(others, 1) if other != first]:
        names = {name for rank in differing for name in {*others[rank - 1]} ^ {*first}}
        listed = some_of([str(rank) for rank in differing])
        logger.warning(
            f"Other accelerations work on rank {listed} than on rank 0, so the same command may "
            f"give other bits elsewhere; add {','.join(sorted(names))} to speed.without to avoid "
            "that."
        )


def _check_same_settings(before: RunSettings, after: RunSettings) -> None:
    if listed := _difference(before, after):
        raise InputError(
            f"A resumed run keeps its settings, but {listed}: leave the change out, or start a new "
            "run in another folder."
        )


def _difference(before: RunSettings, after: RunSettings) -> str:
    """Return the settings that differ and must not, for a message; empty if there are none."""
    changed = {
        key: values
        for key, values in differences(before, after).items()
        if not key.startswith(_FREE_ON_RESUME)
    }
    return ", ".join(
        f"{key} was {shortened(repr(old), 60)}, now {shortened(repr(new), 60)}"
        for key, (old, new) in changed.items()
    )


def _changes(
    settings: RunSettings, new_settings: RunSettings, environment: Record, new_environment: Record
) -> dict[str, tuple[Any, Any]]:
    """Return what affects the result by rounding and has changed, with both values."""
    chosen = differences(settings, new_settings)
    # A run of an older version may have recorded more.
    found = {
        key: (value, new_environment.get(key, value))
        for key, value in environment.items()
        if key != "command"
    }
    changed = {key: (old, new) for key, (old, new) in found.items() if old != new}
    return {key: chosen[key] for key in _ROUNDING if key in chosen} | changed


def _warn_of_changes(changes: Mapping[str, tuple[Any, Any]], dropout: float) -> None:
    for key, (old, new) in changes.items():
        effect = "its result may differ by rounding"
        if key == "processes" and dropout:
            effect = "its result differs, because each process draws its own dropout"
        logger.warning(f"The run began with {key} {old} and goes on with {new}: {effect}.")


def _changed_parts(before: Record, now: Record) -> list[str]:
    """Name the parts of data.json that differ. A run of an older version recorded less."""
    base = BaseInfo(**before["base"]).changes(BaseInfo(**now["base"]))
    return [f"the base model's {part}" for part in base] + [
        name
        for key, name in _NAMES.items()
        if _fingerprint(before.get(key)) != _fingerprint(now.get(key))
        and (key not in _IF_KNOWN or (key in before and key in now))
    ]


def _hash(settings: RunSettings) -> dict[str, str]:
    """Return the SHA-256 of the settings that change the result, if only by rounding."""
    values = {
        key: value
        for key, value in dotted(settings).items()
        if key in _ROUNDING or not key.startswith(_FREE_ON_RESUME)
    }
    return {"sha256": hashlib.sha256(json.dumps(values).encode()).hexdigest()}


def _fingerprint(part: Record | None) -> str | None:
    return None if part is None else str(part["sha256"])


def _parse_record(line: str) -> dict[str, Any] | None:
    """Return the record of a line of the metrics, or None if the line is damaged."""
    try:
        record = json.loads(line)
        whole = record["kind"] in ("train", "evaluation") and type(record["step"]) is int
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record if whole else None
