"""Trials: something happens to a work, and the work must end as if nothing had happened."""

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reliability.disk import Tree, read_tree, write_tree
from reliability.forks import Ended, run
from reliability.watching import DIE, GO_ON, Answer, Call
from reliability.works import Work, difference, essential, left_behind, result_of

# The preparing process of a killed training ends a moment later.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Verdict:
    """The result of a trial.

    Attributes:
        failure: what went wrong; None if the work held.
        said: whether it held by saying what is wrong: it refused to work, and went on after that
            was mended, or it named the file that it did without.
    """

    failure: str | None = None
    said: bool = False


class Trial(Protocol):
    """Something that happens to a work."""

    @property
    def group(self) -> str:
        """The line of the table."""

    def __str__(self) -> str: ...

    def attempt(self, place: Path, undisturbed: Mapping[str, Any]) -> Verdict:
        """Let it happen in a place that holds `work.start`, and judge how the work ends."""

    @property
    def work(self) -> Work:
        """The work."""


def attempt(folder: Path, undisturbed: Mapping[str, Any], trial: Trial) -> Verdict:
    """Let a trial happen in a new place in `folder`, and judge it.

    Args:
        undisturbed: the result of each work, by its name.
    """
    with new_place(folder, trial.work.start) as place:
        return trial.attempt(place, undisturbed[trial.work.name])


@contextmanager
def new_place(folder: Path, start: Tree) -> Iterator[Path]:
    """Yield a new folder in `folder` that holds `start`."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        write_tree(start, place)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def stopped(work: Work, folder: Path, answer: Answer) -> Tree:
    """Return what a work leaves that dies at some call."""
    with new_place(folder, work.start) as place:
        run(work.begin, place, answer=answer)
        return {k: v for k, v in read_tree(place).items() if not k.startswith("tmp")}


@dataclass(frozen=True)
class Kill:
    """The process is killed so many seconds after its start, and perhaps the next one, too."""

    work: Work
    seconds: tuple[float, ...]

    @property
    def group(self) -> str:
        """The line of the table."""
        return f"killed: {self.work.name}"

    def __str__(self) -> str:
        return f"{self.work.name}, killed after {', '.join(f'{s:.3f} s' for s in self.seconds)}"

    def attempt(self, place: Path, undisturbed: Mapping[str, Any]) -> Verdict:
        """See `Trial`."""
        for number, seconds in enumerate(self.seconds):
            step = self.work.go_on if number else self.work.begin
            run(step, place, kill_after=seconds)
        return Verdict(finish(self.work, place, undisturbed))


@dataclass(frozen=True)
class State:
    """The process, or the machine, died in this state of its files."""

    work: Work
    kind: str
    call: str
    tree: Tree

    @property
    def group(self) -> str:
        """The line of the table."""
        return f"{self.kind}: {self.work.name}"

    def __str__(self) -> str:
        return f"{self.work.name}, {self.kind} before {self.call}"

    def attempt(self, place: Path, undisturbed: Mapping[str, Any]) -> Verdict:
        """See `Trial`."""
        shutil.rmtree(place)
        write_tree(self.tree, place)
        return Verdict(finish(self.work, place, undisturbed))


@dataclass(frozen=True)
class Fault:
    """A call fails, or all calls that need room from then on; then the fault is mended."""

    work: Work
    number: int
    error: int
    lasting: bool

    @property
    def group(self) -> str:
        """The line of the table."""
        kind = "full disk" if self.lasting else errno.errorcode[self.error]
        return f"{kind}: {self.work.name}"

    def __str__(self) -> str:
        which = f"from call {self.number} on" if self.lasting else f"at call {self.number}"
        return f"{self.work.name}, {errno.errorcode[self.error]} {which}"

    def attempt(self, place: Path, undisturbed: Mapping[str, Any]) -> Verdict:
        """See `Trial`."""
        ended = run(self.work.begin, place, answer=failing(self.number, self.error, self.lasting))
        if ended.status != 0 and ended.refusal is None:
            return Verdict(f"the failing command said: {_last_words(ended)}")
        return Verdict(finish(self.work, place, undisturbed))


@dataclass(frozen=True)
class Damage:
    """A file of a work is damaged; the result is the same, or the damage is named.

    Attributes:
        path: the damaged file.
        kind: what happens to it.
        apply: damages the file.
        error: the errno with which the file cannot be opened; 0 if it can.
    """

    work: Work
    of: str
    path: str
    kind: str
    apply: Callable[[Path], None]
    error: int = 0

    @property
    def group(self) -> str:
        """The line of the table."""
        return f"damaged: {self.of}"

    @property
    def trains(self) -> bool:
        """Whether the work is a training."""
        return self.work.name.startswith("train")

    def __str__(self) -> str:
        return f"{self.work.name}, {self.path} {self.kind}"

    def attempt(self, place: Path, undisturbed: Mapping[str, Any]) -> Verdict:
        """See `Trial`."""
        whole = self.work.start[self.path]
        path = place / self.path
        self.apply(path)
        ended = self.work.finish(place, unreadable(path, self.error) if self.error else None)
        if ended.status == 0:
            after = essential(result_of(place), self.path)
            lost = _lost(essential(undisturbed, self.path), after)
            # An answer may depend on a missing file, but not a training on a damaged one.
            said = not path.exists() and path.name in ended.said and not self.trains
            return Verdict(None if said else lost or _left(place), said and lost is not None)
        if ended.refusal is None:
            return Verdict(f"it said: {_last_words(ended)}")
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole or b"")
        if failure := finish(self.work, place, undisturbed):
            return Verdict(f"it was refused, and after the file was restored {failure}")
        return Verdict(said=True)


def failing(number: int, error: int, lasting: bool) -> Answer:
    """Return the answer to calls that lets one fail, or all that need room from it on."""
    seen = 0

    def answer(call: Call) -> int:
        nonlocal seen
        if call.name == "read":
            return GO_ON
        seen += 1
        needs_room = call.name in ("open", "write", "mkdir", "fsync")
        hit = seen == number or (lasting and seen > number and needs_room)
        return error if hit else GO_ON

    return answer


def dying(when: Callable[[Call], bool]) -> Answer:
    """Return the answer to calls that kills the process before the first such call."""
    return lambda call: DIE if when(call) else GO_ON


def unreadable(path: Path, error: int) -> Answer:
    """Return the answer to calls that lets no process open a file; another in its place is open."""
    number = path.stat().st_ino

    def answer(call: Call) -> int:
        opens = call.name in ("read", "open") and call.path == str(path) and path.exists()
        return error if opens and path.stat().st_ino == number else GO_ON

    return answer


def finish(work: Work, place: Path, undisturbed: Mapping[str, Any]) -> str | None:
    """Go on with a work; return how its end differs from the undisturbed one."""
    ended = work.finish(place)
    done = ended.status == 0 or "exists already" in ended.said
    if not done:
        return f"it did not go on: {_last_words(ended)}"
    return _lost(undisturbed, result_of(place)) or _left(place)


def _lost(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    found = difference(before, after)
    return found and f"the result {found}"


def _left(place: Path) -> str | None:
    end = time.monotonic() + _PATIENCE
    while (names := left_behind(place)) and time.monotonic() < end:
        time.sleep(0.05)
    return f"{', '.join(names[:5])} stayed" if names else None


def _last_words(ended: Ended) -> str:
    return f"{' '.join(ended.said.split())[-400:]} (status {ended.status})"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
