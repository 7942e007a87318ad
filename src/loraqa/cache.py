"""Files and folders kept between runs, each named after its key and the SHA-256 of its content.

One whose content is not what its name says was damaged. It is removed and never used: a cut library
crashes the process, and changed numbers would be trained on.
"""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from loraqa.files import (
    cache_folder,
    make_folder,
    remove,
    replacing,
    replacing_folder,
    sha256,
    sweep,
    temporary_folder,
)

logger = logging.getLogger("loraqa")

# Matches any SHA-256, and not what is just being written.
_ANY_HASH = "?" * 64


def find_kept(kind: str, key: str, ending: str = "") -> Path | None:
    """Return the whole file or folder of a key in the cache folder `kind`, or None.

    What killed processes left there is removed, because perhaps nothing is written there again.

    Args:
        kind: the name of the cache folder.
        key: what the file or folder was kept under.
        ending: the file's ending, such as ".so".
    """
    found = None
    with contextlib.suppress(OSError):
        folder = cache_folder(kind)
        sweep(folder)
        for path in sorted(folder.glob(f"{key}.{_ANY_HASH}{ending}")):
            if path.name == _name(key, path, ending):
                found = path
            else:
                remove(path)
    return found


def keep(kind: str, key: str, ending: str, write: Callable[[Path], object]) -> Path | None:
    """Keep what `write` writes to the path that it is given.

    Returns:
        The file, or None if the cache cannot be written. Then a message says once that the work is
        repeated next time.
    """
    folder = cache_folder(kind)
    try:
        make_folder(folder)
        # Another process may keep the same at the same time.
        with temporary_folder(folder) as place:
            new = place / f"new{ending}"
            with replacing(new) as temporary:
                write(temporary)
            return new.replace(folder / _name(key, new, ending))
    except OSError as error:
        _tell_unwritable(folder, error.strerror)
        return None


def keep_folder(kind: str, key: str, write: Callable[[Path], object]) -> Path:
    """Keep what `write` writes to the new folder that it is given, and return the kept folder.

    Raises:
        OSError: the cache cannot be written.
    """
    folder = cache_folder(kind)
    make_folder(folder)
    with temporary_folder(folder) as place:
        new = place / "new"
        with replacing_folder(new) as temporary:
            write(temporary)
        return new.replace(folder / _name(key, new, ""))


@functools.cache
def _tell_unwritable(folder: Path, reason: str) -> None:
    logger.info(
        f"Nothing can be kept in {folder} ({reason}), so the work is repeated at every "
        "start; name another folder in LORAQA_CACHE."
    )


def _name(key: str, path: Path, ending: str) -> str:
    """Return the name that the content of a file or folder gives it."""
    return f"{key}.{_hash_of_folder(path) if path.is_dir() else sha256(path)}{ending}"


def _hash_of_folder(folder: Path) -> str:
    """Return a SHA-256 (hex) over the names and contents of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [(str(path.relative_to(folder)), sha256(path)) for path in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
