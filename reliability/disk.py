"""What a folder holds, and what of it a power cut would leave."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from reliability.watching import Call

Tree = Mapping[str, bytes | None]
"""The content of each file by its path in the folder; None for a folder."""

_contents: dict[bytes, bytes] = {}


def read_tree(root: Path) -> Tree:
    """Read a folder; links are left out."""
    return dict(sorted(_entries(root, "")))


def write_tree(tree: Tree, root: Path) -> None:
    """Write files and folders into `root`, which is made if there is none."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in sorted(tree.items()):
        if content is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)


def _entries(folder: Path, prefix: str) -> Iterator[tuple[str, bytes | None]]:
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield prefix + entry.name, None
            yield from _entries(path, f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            content = path.read_bytes()
            # Thousands of trees share most of their files.
            yield prefix + entry.name, _contents.setdefault(content, content)


@dataclass
class Disk:
    """Follows what has been flushed to disk, from the calls of a process.

    Everything in `root` counts as flushed at first. `fsync` of a file flushes its content, `fsync`
    of a folder the names in it (POSIX promises no more).
    """

    root: Path
    _ids: dict[int, int] = field(default_factory=dict)
    _next: Iterator[int] = field(default_factory=count)
    _flushed: dict[int, bytes] = field(default_factory=dict)
    _names: dict[int, dict[str, int]] = field(default_factory=dict)
    _folders: set[int] = field(default_factory=set)
    _new: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.root, *self.root.rglob("*")):
            self._flush(path)

    def before(self, call: Call) -> None:
        """Take notice of a call that is about to be made."""
        if self._new is not None and self._new.exists():
            # The system uses the number of a removed file again.
            self._ids.pop(self._new.stat().st_ino, None)
        path = Path(call.path)
        creates = call.name in ("open", "mkdir") and not path.exists()
        self._new = path if creates else None
        if call.name == "fsync":
            self._flush(path)

    def without_unflushed_data(self, *, zeroed: bool) -> Tree:
        """Return the tree with each file as it was last flushed: cut, or filled with zeros."""
        return {
            name: content if content is None else self._on_disk(self.root / name, content, zeroed)
            for name, content in read_tree(self.root).items()
        }

    def flushed_alone(self) -> Tree:
        """Return the tree of names and contents that have been flushed."""
        return dict(self._below(self._id(self.root), ""))

    def _on_disk(self, path: Path, content: bytes, zeroed: bool) -> bytes:
        flushed = self._flushed.get(self._id(path), b"")
        return flushed.ljust(len(content), b"\0") if zeroed else flushed

    def _below(self, folder: int, prefix: str) -> Iterator[tuple[str, bytes | None]]:
        for name, each in self._names.get(folder, {}).items():
            if each in self._folders:
                yield prefix + name, None
                yield from self._below(each, f"{prefix}{name}/")
            else:
                yield prefix + name, self._flushed.get(each, b"")

    def _flush(self, path: Path) -> None:
        if path.is_dir():
            self._names[self._id(path)] = {p.name: self._id(p) for p in path.iterdir()}
        elif path.is_file():
            content = path.read_bytes()
            self._flushed[self._id(path)] = _contents.setdefault(content, content)

    def _id(self, path: Path) -> int:
        """Return the number of a file or folder, which no other one gets."""
        inode = path.stat().st_ino
        if inode not in self._ids:
            self._ids[inode] = next(self._next)
        if path.is_dir():
            self._folders.add(self._ids[inode])
        return self._ids[inode]
