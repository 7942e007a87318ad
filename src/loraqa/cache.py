"""Files kept between runs, each named after its key and the SHA-256 of its content.

A file whose content is not what its name says was damaged. It is removed and never used: a cut
library crashes the process, and changed numbers would be trained on.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from pathlib import Path

from loraqa.files import cache_folder, replacing, sha256

logger = logging.getLogger("loraqa")


def find_kept(kind: str, key: str, ending: str) -> Path | None:
    """Return the whole file of a key in the cache folder `kind`, or None.

    Args:
        kind: the name of the cache folder.
        key: what the file was kept under.
        ending: the file's ending, such as ".so".
    """
    found = None
    with contextlib.suppress(OSError):
        for path in sorted(cache_folder(kind).glob(f"{key}.*{ending}")):
            if path.name == _name(key, path, ending):
                found = path
            else:
                path.unlink()
    return found


def keep(kind: str, key: str, ending: str, write: Callable[[Path], object]) -> Path | None:
    """Keep what `write` writes to the path that it is given.

    Returns:
        The file, or None if the cache cannot be written. Then a message says once that the work is
        repeated next time.
    """
    folder = cache_folder(kind)
    try:
        with replacing(folder / f"{key}.new{ending}") as temporary:
            write(temporary)
            name = _name(key, temporary, ending)
        return (folder / f"{key}.new{ending}").replace(folder / name)
    except OSError as error:
        _tell_unwritable(folder, error.strerror)
        return None


@functools.cache
def _tell_unwritable(folder: Path, reason: str) -> None:
    logger.info(
        f"Nothing can be kept in {folder} ({reason}), so the work is repeated at every "
        "start; name another folder in LORAQA_CACHE."
    )


def _name(key: str, path: Path, ending: str) -> str:
    """Return the name that a file's content gives it."""
    return f"{key}.{sha256(path)}{ending}"
