"""The embedded example: texts about a small invented world and a small model pretrained on them.

Importing this loads no PyTorch, so that a wrong folder is reported at once.
"""

from pathlib import Path

from loraqa.errors import InputError
from loraqa.files import check_folder_writable, contents
from loraqa.model.source import ModelSource
from loraqa.squad import check_there


def check_room(out: Path) -> None:
    """Raise `InputError` if `out` holds anything but an earlier demo, or cannot be written."""
    new = not out.exists() or (out.is_dir() and not contents(out))
    if not new and not (out / "data" / "train.json").is_file():
        raise InputError(f"{out} exists and is no earlier demo; name another folder with --out.")
    check_folder_writable(out)


def check_choice(model: str | None, train: str | None, dev: str | None) -> None:
    """Raise `InputError` if the demo cannot work on these, before anything large is imported."""
    if (train is None) != (dev is None):
        raise InputError(
            "Give --train and --dev together: the demo learns from one, and scores on the other."
        )
    if train is not None and model is None:
        raise InputError("The embedded base model knows only its own world; give --model, too.")
    if model is not None:
        ModelSource(model)
    for source in (train, dev):
        if source is not None:
            check_there(source)
