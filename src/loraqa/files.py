"""Write files atomically: write to a temporary name, flush to disk, rename."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loraqa.errors import InputError, in_a_line


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    On failure `path` is unchanged, and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success flush it to disk and rename it to `path`.

    An existing folder at `path` is removed just before the rename. On failure it is kept, and the
    temporary folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        # Some libraries create files that only the user can read.
        for inside in (*temporary.rglob("*"), temporary):
            inside.chmod((0o777 if inside.is_dir() else 0o666) & ~_umask())
            _flush(inside)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    """Remove all but the newest `count` files that match a glob pattern in `folder`."""
    # Another process may do the same, or the folder may not be writable.
    with suppress(OSError):
        files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in files[:-count]:
            path.unlink(missing_ok=True)


def check_file_writable(path: Path) -> None:
    """Raise `InputError` if no file can be written at `path`; call it before long work."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file.")
    check_folder_writable(path.parent)


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


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; raise `ValueError` for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that loraqa wrote; raise `InputError` if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from None


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors atomically as safetensors."""
    from safetensors.torch import save_file

    with writing_tensors(path), replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata)


@contextmanager
def writing_tensors(path: Path) -> Iterator[None]:
    """Turn safetensors' own error, which it raises on a full disk, into `OSError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({in_a_line(error)})") from error


def looks_like_a_path(name: str) -> bool:
    """Return whether `name`, which is not a folder, looks like a path rather than a hub name."""
    in_a_folder = "/" in name and Path(Path(name).parts[0]).is_dir()
    return in_a_folder or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/")


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
