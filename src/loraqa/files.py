"""Write files atomically: write in a temporary folder, flush to disk, rename."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from loraqa.errors import FileError, InputError, in_a_line

# The file that the writer of a folder locks.
_LOCK = ".lock"
# How the names of temporary folders begin.
_UNFINISHED = ".loraqa-unfinished-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; on success flush it to disk and rename it to `path`.

    On failure `path` is unchanged, and the temporary file is removed.

    Raises:
        FileError: an `OSError`, which names `path`.
    """
    with _beside(path) as folder:
        temporary = folder / path.name
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success flush it to disk and rename it to `path`.

    What was at `path` is removed after the rename. On failure it is kept, and the temporary folder
    is removed.

    Raises:
        FileError: an `OSError`, which names `path` or a file in it.
    """
    with _beside(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        # What could not be removed from it.
        for left in temporary.rglob(f"{_UNFINISHED}*"):
            shutil.rmtree(left)
        # Some libraries create files that only the user can read.
        for inside in (*temporary.rglob("*"), temporary):
            inside.chmod((0o777 if inside.is_dir() else 0o666) & ~_umask())
            _flush(inside)
        _replace_folder(path, temporary, folder / f"{path.name}.old")
        _flush(path.parent)


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder in `parent`, by default in the system's; remove it on leaving.

    If this process is killed, the next one that makes a temporary folder there removes it.
    """
    place = parent or Path(tempfile.gettempdir())
    sweep(place)
    folder, lock = _make_locked(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(place: Path | None = None) -> None:
    """Remove the temporary folders of killed processes from a folder, by default the system's.

    A process locks its temporary folders, and the system drops the locks when the process dies.
    Where folders cannot be locked, as on NFS, they stay.
    """
    for folder in (place or Path(tempfile.gettempdir())).glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Let no other process write to a folder, which is made if there is none.

    The lock is a file in the folder. The system drops it when this process dies. A folder that was
    made here and is empty at the end is removed.

    Raises:
        InputError: another process writes to the folder.
        FileError: the folder cannot be made or locked.
    """
    new = not folder.exists()
    path = folder / _LOCK
    lock = FileLock(path, timeout=0)
    try:
        make_folder(folder)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"Another process is writing to {folder}; wait until it has ended, or name another "
            "folder."
        ) from None
    except OSError as error:
        raise FileError(error, path, "locked") from error
    try:
        yield
    finally:
        # Removed while it is locked: whoever has just opened it sees that it is gone.
        path.unlink(missing_ok=True)
        lock.release()
        if new:
            with suppress(OSError):
                folder.rmdir()


def contents(folder: Path) -> list[Path]:
    """Return what is in a folder, without what `one_writer` and killed processes leave there."""
    return [p for p in folder.iterdir() if p.name != _LOCK and not p.name.startswith(_UNFINISHED)]


def cache_folder(name: str) -> Path:
    """Return the cache folder for one kind of file, in `$LORAQA_CACHE` or the user's cache folder.

    Raises:
        InputError: the user has no home folder.
    """
    if chosen := os.environ.get("LORAQA_CACHE"):
        return Path(chosen) / name
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise InputError(
            "There is no home folder for the cache; set LORAQA_CACHE to another folder."
        ) from None
    return caches / "loraqa" / name


def keep_newest(folder: Path, pattern: str, count: int) -> None:
    """Remove all but the newest `count` files or folders that match a glob pattern in `folder`."""
    # Another process may do the same, or the folder may not be writable.
    with suppress(OSError):
        files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in files[:-count]:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and flush each folder in which one is made."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _flush(path.parent)


def check_file_writable(path: Path) -> None:
    """Raise `InputError` if no file can be written at `path`; call it before long work."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file.")
    check_folder_writable(path.parent)


def check_new_file(path: Path) -> None:
    """Raise `InputError` if `path` exists, because whoever made it may still need it."""
    if path.exists():
        raise InputError(f"{path} exists already; name another place, or remove it.")


def check_new_folder(path: Path) -> None:
    """Raise `InputError` if `path` exists or nothing can be written there."""
    # A killed process may have finished the folder, and left its temporary one.
    sweep(path.parent)
    if path.exists():
        raise InputError(f"{path} exists already; name a new folder.")
    check_folder_writable(path)


def check_folder_writable(path: Path) -> None:
    """Raise `InputError` if nothing can be written into the folder `path`, which may not exist."""
    whole = path.absolute()
    try:
        existing = next(folder for folder in (whole, *whole.parents) if folder.exists())
        # Permissions are not enough: root may do everything in /proc, but cannot create files.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"Nothing can be written into {path} ({error.strerror}); name another folder."
        ) from None


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file. Raises `FileError`, an `OSError`, which names `path`."""
    with naming(path, "written"):
        new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if new:
            _flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file to disk. Raises `FileError`, an `OSError`, which names `path`."""
    with naming(path, "written"):
        _flush(path)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8, with the line ends that it has."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_text_once(path: Path, text: str) -> None:
    """Write `text` like `write_text`, unless the file holds it already.

    Raises:
        InputError: the file holds something else.
    """
    if not path.exists():
        write_text(path, text)
        return
    with naming(path, "read"):
        # A device or a pipe is not read; that might never end.
        same = path.is_file() and path.read_bytes() == text.encode()
    if not same:
        raise InputError(
            f"{path} exists already and holds something else; name another file, or remove it."
        )


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; raise `ValueError` for NaN and infinity."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """Return `value` as indented JSON; raise `ValueError` for NaN and infinity."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file that loraqa wrote.

    Raises:
        InputError: the file is missing or broken.
        FileError: an `OSError`, which names `path`.
    """
    try:
        with naming(path, "read"):
            value = json.loads(path.read_text(encoding="utf-8"))
        # A lone surrogate, which JSON can escape, could be neither written nor printed.
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileError as error:
        if error.errno == errno.ENOENT:
            raise InputError(f"{path} does not exist.") from None
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({in_a_line(error)}).") from None


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors atomically as safetensors."""
    from safetensors.torch import save_file

    with replacing(path) as temporary, writing_tensors(temporary):
        save_file(dict(tensors), temporary, metadata)


@contextmanager
def writing_tensors(path: Path) -> Iterator[None]:
    """Turn safetensors' own error, which it raises on a full disk, into an `OSError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        cause = OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(error)
        raise FileError(cause, path, "written") from error


@contextmanager
def writing_a_tokenizer(path: Path) -> Iterator[None]:
    """Turn tokenizers' own error, which has no class of its own, into an `OSError`."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception:
            raise FileError(OSError(in_a_line(error)), path, "written") from error
        raise


@contextmanager
def naming(path: Path, done: str) -> Iterator[None]:
    """Let an `OSError` name `path` and say what cannot be done: "read" or "written"."""
    try:
        yield
    except OSError as error:
        raise FileError(error, path, done) from error


def looks_like_a_path(name: str) -> bool:
    """Return whether `name`, which is not a folder, looks like a path rather than a hub name."""
    in_a_folder = "/" in name and Path(Path(name).parts[0]).is_dir()
    return in_a_folder or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/")


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hex. Raises `FileError`, an `OSError`, which names `path`."""
    with naming(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`. An `OSError` names `path` or a file in it."""
    temporary = path.parent
    try:
        make_folder(path.parent)
        with temporary_folder(path.parent) as temporary:
            yield temporary
    except OSError as error:
        raise _renamed(error, path, temporary) from error


def _renamed(error: OSError, path: Path, temporary: Path) -> OSError:
    """Return an error that names `path` instead of `temporary / path.name`, also for files in it.

    An error that names any other file is returned as it is.
    """
    if error.filename is None:
        return FileError(error, path, "written")
    named = Path(os.fsdecode(error.filename))
    if named.is_relative_to(temporary / path.name):
        inside = named.relative_to(temporary / path.name)
        return FileError(error, path / inside, getattr(error, "done", "written"))
    return FileError(error, path, "written") if path.is_relative_to(named) else error


def _replace_folder(path: Path, new: Path, old: Path) -> None:
    """Rename `new` to `path`, and what is there to `old`."""
    with suppress(FileNotFoundError):
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        with suppress(OSError):
            old.rename(path)
        raise


def _make_locked(place: Path) -> tuple[Path, int]:
    """Make a temporary folder, and return it with a descriptor that locks it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=place))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            # Without locks, nobody sweeps either.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
        # Another process has taken the folder for a killed one's before it was locked.


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
