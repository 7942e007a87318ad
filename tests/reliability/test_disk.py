"""What a power cut leaves: what was flushed for sure, and perhaps the names of the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest
from reliability.disk import Disk, read_tree, write_tree
from reliability.watching import Call


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "old").write_bytes(b"old")
    return Disk(tmp_path)


def do(disk: Disk, name: str, path: str, change: Callable[[Path], object]) -> None:
    """Tell the disk of a call, then make it."""
    disk.before(Call(name, str(disk.root / path), ""))
    change(disk.root / path)


def test_data_are_lost_until_they_are_flushed(disk: Disk) -> None:
    do(disk, "open", "new", Path.touch)
    do(disk, "write", "new", lambda path: path.write_bytes(b"new"))
    assert disk.without_unflushed_data(zeroed=False) == {"new": b"", "old": b"old"}
    assert disk.without_unflushed_data(zeroed=True) == {"new": b"\0\0\0", "old": b"old"}
    do(disk, "fsync", "new", lambda _: None)
    do(disk, "write", "new", lambda path: path.write_bytes(b"newer"))
    assert disk.without_unflushed_data(zeroed=False) == {"new": b"new", "old": b"old"}
    assert disk.without_unflushed_data(zeroed=True) == {"new": b"new\0\0", "old": b"old"}


def test_names_are_lost_until_their_folder_is_flushed(disk: Disk) -> None:
    do(disk, "open", "new", Path.touch)
    do(disk, "write", "new", lambda path: path.write_bytes(b"new"))
    do(disk, "fsync", "new", lambda _: None)
    assert disk.flushed_alone() == {"old": b"old"}
    do(disk, "rename", "new", lambda path: path.rename(path.with_name("old")))
    assert disk.flushed_alone() == {"old": b"old"}
    do(disk, "fsync", "", lambda _: None)
    assert disk.flushed_alone() == {"old": b"new"}


def test_a_removed_file_is_there_until_its_folder_is_flushed(disk: Disk) -> None:
    do(disk, "unlink", "old", Path.unlink)
    # The new file gets the number of the removed one.
    do(disk, "open", "new", Path.touch)
    assert disk.flushed_alone() == {"old": b"old"}
    do(disk, "fsync", "", lambda _: None)
    assert disk.flushed_alone() == {"new": b""}


def test_trees_are_read_as_they_were_written(tmp_path: Path) -> None:
    tree = {"a": None, "a/b": b"1", "c": b""}
    write_tree(tree, tmp_path / "x")
    assert read_tree(tmp_path / "x") == tree
