"""The embedded example: texts about a small invented world and a small model pretrained on them.

Importing this loads no PyTorch, so that a wrong folder is reported at once.
"""

from pathlib import Path

from loraqa.errors import InputError
from loraqa.files import check_folder_writable, contents


def check_room(out: Path) -> None:
    """Raise `InputError` if `out` holds anything but an earlier demo, or cannot be written."""
    new = not out.exists() or (out.is_dir() and not contents(out))
    if not new and not (out / "data" / "train.json").is_file():
        raise InputError(f"{out} exists and is no earlier demo; name another folder with --out.")
    check_folder_writable(out)
