"""The studies notice what goes wrong: lost results, temporary files, tracebacks."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from reliability.damages import damages
from reliability.disk import Tree
from reliability.trials import Damage, Kill, State, Verdict, attempt
from reliability.works import PREDICTIONS, Work

RIGHT = {PREDICTIONS: b"right", "source": b"right"}


def copy_source() -> None:
    """A good work: copy a file whole, or refuse to."""
    content = Path("source").read_bytes() if Path("source").is_file() else b""
    if content != b"right":
        sys.stderr.write("loraqa: source is damaged; restore it.\n")
        raise SystemExit(2)
    Path("copy.new").write_bytes(content)
    Path("copy.new").rename(PREDICTIONS)


def verdict(trial: Any, folder: Path) -> Verdict:
    return attempt(folder, {"copy": RIGHT}, trial)


def copying(work: Callable[[], None], start: Tree | None = None) -> Work:
    return Work("copy", work, work, {"source": b"right"} if start is None else start)


@pytest.mark.parametrize("seconds", [(0.0,), (0.005, 0.001), (9.0,)])
def test_a_work_that_goes_on_holds(tmp_path: Path, seconds: tuple[float, ...]) -> None:
    assert verdict(Kill(copying(copy_source), seconds), tmp_path) == Verdict()
    assert list(tmp_path.iterdir()) == []


def wrong() -> None:
    Path(PREDICTIONS).write_text("wrong")


def raising() -> None:
    raise KeyError("a bug")


def leaving() -> None:
    copy_source()
    Path(".loraqa-unfinished-x").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("work", "failure"),
    [
        (wrong, "differs in predictions.json"),
        (raising, "KeyError: 'a bug' (status 70)"),
        (leaving, "has also .loraqa-unfinished-x"),
    ],
)
def test_what_goes_wrong_is_told(work: Callable[[], None], failure: str, tmp_path: Path) -> None:
    found = verdict(Kill(copying(work), (9.0,)), tmp_path)
    assert failure in str(found.failure)


def test_a_state_that_a_crash_left_is_gone_on_from(tmp_path: Path) -> None:
    state = State(copying(copy_source), "process died", "rename copy.new", {"source": b"right"})
    assert verdict(state, tmp_path) == Verdict()
    lost = State(copying(copy_source), "power cut, names lost", "rename copy.new", {})
    assert "it did not go on: loraqa: source is damaged" in str(verdict(lost, tmp_path).failure)


def test_a_refused_damage_holds_if_nothing_else_is_lost(tmp_path: Path) -> None:
    work = copying(copy_source)
    for damage in damages([("all", work, ["source"])], 40, seed=0):
        # Without the library no process can be kept from reading a file.
        if not damage.error:
            assert verdict(damage, tmp_path) == Verdict(said=True)


def trusting() -> None:
    Path(PREDICTIONS).write_bytes(Path("source").read_bytes())


def destroying() -> None:
    if Path("source").read_bytes() != b"right":
        Path(PREDICTIONS).mkdir()
        sys.stderr.write("loraqa: source is damaged; restore it.\n")
        raise SystemExit(2)
    copy_source()


@pytest.mark.parametrize(
    ("work", "failure"),
    [
        (trusting, "the result differs in predictions.json"),
        (destroying, "it was refused, and after the file was restored it did not go on"),
        (raising, "it said: Traceback"),
    ],
)
def test_damages_that_are_not_held_are_told(
    work: Callable[[], None], failure: str, tmp_path: Path
) -> None:
    emptied = partial(Path.write_bytes, data=b"")
    damage = Damage(copying(work), "all", "source", "emptied", emptied)
    assert failure in str(verdict(damage, tmp_path).failure)


def test_every_damage_changes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "source"
    work = copying(copy_source, {"source": b"some longer content", "other": b"other content"})
    kinds = set()
    for damage in damages([("all", work, ["source"])], 60, seed=1):
        path.write_bytes(b"some longer content")
        damage.apply(path)
        kinds.add(damage.kind.split()[0])
        if path.is_file():
            assert damage.error or path.read_bytes() != b"some longer content"
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
    assert len(kinds) >= 10
