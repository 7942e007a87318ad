"""The answers of an unfinished job, a file for each part, in a folder beside the output.

OUT.parts/
    work.json             what the answers depend on besides questions and contexts
    part-00000000.json    the answers to the first part; …
    .lock                 locked while a process works here

The folder holds no copy of the input: when all parts are there, OUT is written from both.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loraqa.answer.journal import tell_of_kept
from loraqa.batch.plan import Part
from loraqa.batch.source import Reply
from loraqa.begun import check_begun_with
from loraqa.errors import InputError
from loraqa.files import (
    check_new_file,
    one_writer,
    read_json,
    temporary_folder,
    write_json,
    write_text,
)

logger = logging.getLogger("loraqa")


class Parts:
    """The finished parts of a job.

    Args:
        folder: where they are.
        facts: what their answers depend on.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        self._facts = facts
        self._work = folder / "work.json"

    @classmethod
    @contextmanager
    def beside(cls, out: Path, facts: Mapping[str, Any]) -> Iterator["Parts"]:
        """Yield the parts of a job whose result will be the file `out`; no other process may work.

        Raises:
            InputError: another process does, or the job began with other facts.
        """
        folder = _folder_of(out)
        with one_writer(folder):
            parts = cls(folder, facts)
            if parts._work.exists():
                began = read_json(parts._work)
                check_begun_with(str(folder), began, facts, "remove the folder to start anew")
            try:
                yield parts
            except (KeyboardInterrupt, SystemExit, OSError):
                tell_of_kept(folder, kept=any(folder.glob("part-*")))
                raise

    @staticmethod
    def check_unwritten(out: Path) -> None:
        """Raise `InputError` if `out` was written before, and not by a job that is to go on."""
        if not _folder_of(out).exists():
            check_new_file(out)

    def path(self, part: Part) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{part.number:08}.json"

    def save(self, part: Part, replies: Sequence[Reply]) -> None:
        """Keep the answers to a part."""
        if not self._work.exists():
            write_json(self._work, self._facts)
        entry = {"questions": part.sha256, "replies": replies}
        text = json.dumps({"sha256": _digest(entry), **entry}, ensure_ascii=False)
        write_text(self.path(part), text + "\n")

    def load(self, part: Part) -> list[Reply] | None:
        """Return the answers to a part; None if they are missing or damaged.

        Raises:
            InputError: they are answers to other questions or contexts.
        """
        path = self.path(part)
        if not path.exists():
            return None
        entry: Any = None
        with suppress(ValueError, RecursionError):
            entry = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entry, dict) or entry.pop("sha256", None) != _digest(entry):
            logger.warning(f"{path} is damaged; the part is answered again.")
            return None
        if entry["questions"] != part.sha256:
            raise InputError(
                f"{path} holds answers to other questions or contexts than {part} of the input; "
                f"restore the input, or remove {self.folder} to start anew."
            )
        return [Reply(*cells) for cells in entry["replies"]]

    def missing(self, parts: Iterable[Part]) -> list[Part]:
        """Return the parts that are not answered yet."""
        return [part for part in parts if self.load(part) is None]

    def check_not_made_by_others(self, out: Path) -> None:
        """Raise `InputError` if `out` exists; this job makes it when no part is missing."""
        if out.exists():
            raise InputError(
                f"{out} was made by something else; move it away, and give the same command again: "
                f"the answers are kept in {self.folder}."
            )

    def remove(self) -> None:
        """Remove the folder; a process that is killed meanwhile leaves either all of it or none."""
        with temporary_folder(self.folder.parent) as bin:
            self.folder.rename(bin / self.folder.name)


def _folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()
