"""Keep the answers of an unfinished job on disk, so that it goes on where it was interrupted.

The file has a line of JSON for each batch of prompts, on disk as soon as the batch is answered. A
batch is named after everything that its answers depend on. So a job that goes on computes the same
batches as one that was never interrupted, with the same answers to the bit.
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from loraqa.errors import InputError
from loraqa.files import (
    append_line,
    cache_folder,
    check_new_file,
    flush,
    keep_newest,
    make_folder,
    write_text,
)

logger = logging.getLogger("loraqa")

# How many journals of interrupted jobs the cache keeps.
_KEPT_IN_CACHE = 20


class Journal:
    """A context manager that keeps the results of batches in a file until the job is done.

    with Journal(Path("answers.journal"), reader.identify()) as journal:
        result = evaluate(reader, dataset, journal=journal)
        write_json(Path("predictions.json"), result.predictions)

    Leaving it without an exception removes the file. Otherwise the file stays, and a message says
    so. If the file cannot be written, a warning says so, and the job goes on without it.

    Attributes:
        path: the file, which is created with the first batch.
        identity: identifies the model and how it computes; lines with another one are dropped.
        saved_seconds: how long it had taken to compute the batches that were read from the file.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity
        self.saved_seconds = 0.0
        self._entries: dict[str, dict[str, Any]] = {}
        self._writable = True
        self._is_kept = False

    @classmethod
    def beside(cls, out: Path, identity: str) -> "Journal":
        """Return the journal of a job whose result will be the file `out`."""
        return cls(_beside(out), identity)

    @classmethod
    def in_cache(cls, identity: str, *facts: str | int) -> "Journal":
        """Return a journal in the cache folder, for a job that writes no file of its own.

        If the user has no home folder, it is in the working directory.

        Args:
            identity: as for `Journal`.
            facts: what tells the job from others with the same model.
        """
        digest = hashlib.sha256(json.dumps([identity, *facts]).encode()).hexdigest()
        folder = Path()
        with contextlib.suppress(InputError):
            folder = cache_folder("answers")
            keep_newest(folder, "*.journal", _KEPT_IN_CACHE)
        return cls(folder / f"{digest}.journal", identity)

    @staticmethod
    def check_unwritten(out: Path, *others: Path) -> None:
        """Raise `InputError` if a file was written before, and not by a job that is to go on.

        A job that was killed just after it wrote its files has left its journal beside the first.
        """
        if not _beside(out).exists():
            for path in (out, *others):
                check_new_file(path)

    def __enter__(self) -> "Journal":
        with contextlib.suppress(OSError):
            self._read()
        if self._entries:
            logger.info("Going on with the answers in %s.", self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.tell_what_is_kept()
        elif not self._is_kept:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def keep(self) -> None:
        """Leave the file when the job ends: the same command has something left to do."""
        self._is_kept = True

    def tell_what_is_kept(self) -> None:
        """Log whether answers are kept, after an interruption."""
        tell_of_kept(self.path, kept=self.path.exists())

    def once(self, batch: str, compute: Callable[[], Any]) -> Any:
        """Return the result of a batch from the file; else compute it, and add it to the file.

        Args:
            batch: a name that identifies the batch, such as a hash.
            compute: returns the result, which consists of plain JSON values.
        """
        if entry := self._entries.get(batch):
            self.saved_seconds += entry["seconds"]
            return entry["result"]
        start = time.perf_counter()
        result = compute()
        entry = {"batch": batch, "seconds": time.perf_counter() - start, "result": result}
        self._entries[batch] = entry
        with self._warning():
            self._append(self._line(entry))
        return result

    def _read(self) -> None:
        """Read the whole lines of this job, and remove all others from the file."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        entries = filter(None, map(self._parse, text.splitlines()))
        self._entries = {entry["batch"]: entry for entry in entries}
        whole = "".join(f"{self._line(entry)}\n" for entry in self._entries.values())
        if whole != text:
            with self._warning():
                write_text(self.path, whole)

    def _append(self, line: str) -> None:
        if self._writable:
            make_folder(self.path.parent)
            append_line(self.path, line)
            flush(self.path)

    def _line(self, entry: dict[str, Any]) -> str:
        return json.dumps({"sha256": self._digest(entry), **entry})

    def _parse(self, line: str) -> dict[str, Any] | None:
        """Return the entry of a line, or None if it is damaged or belongs to another job."""
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.pop("sha256", None) == self._digest(entry):
                return entry
        return None

    def _digest(self, entry: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self.identity, entry]).encode()).hexdigest()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        """Turn a file that cannot be written into a warning: the job does not need it."""
        try:
            yield
        except OSError as error:
            self._writable = False
            logger.warning(
                "%s cannot be written (%s); if this job is interrupted, it has to start again.",
                self.path,
                error.strerror or error,
            )


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.journal")


def tell_of_kept(place: Path, *, kept: bool) -> None:
    """Log whether a file or folder keeps the answers of an interrupted job, and how to go on."""
    if kept:
        logger.info(
            "The answers so far are kept in %s; do the same again to go on from there.", place
        )
    else:
        logger.info("No answers were kept yet; do the same again to start anew.")


class Stopwatch:
    """The time since it was made, and the time that went into results from a journal since then."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._start = time.perf_counter() + self._saved

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return time.perf_counter() + self._saved - self._start

    @property
    def _saved(self) -> float:
        return self._journal.saved_seconds if self._journal else 0.0
