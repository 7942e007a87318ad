"""Find the adapter of a run or an adapter folder.

Imports nothing large, so that a wrong path is reported at once.
"""

from pathlib import Path

from loraqa.errors import InputError
from loraqa.files import looks_like_a_path
from loraqa.lora.settings import ADAPTER_CONFIG


def check_source(source: str | Path) -> None:
    """Raise `InputError` if there is no model or adapter to load, before other work is done."""
    folder = Path(source).expanduser()
    if find_adapter_or_model(folder) is None and not folder.is_dir():
        from loraqa.model.source import load_tokenizer

        load_tokenizer(source)


def adapter_of(source: str | Path) -> Path:
    """Return the adapter folder of a run or of an adapter folder.

    Raises:
        InputError: there is no adapter.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no folder {source}; give a finished run or an adapter folder.")
    adapter = find_adapter(folder)
    if adapter is None:
        raise InputError(
            f"{source} holds no adapter: neither adapter/{ADAPTER_CONFIG} nor {ADAPTER_CONFIG}; "
            "give a finished run or an adapter folder."
        )
    return adapter


def find_adapter(folder: Path) -> Path | None:
    """Return the adapter folder of a run or of an adapter folder, or None if there is none."""
    places = (folder / "adapter", folder)
    return next((at for at in places if (at / ADAPTER_CONFIG).exists()), None)


def find_adapter_or_model(folder: Path) -> Path | None:
    """Return the adapter folder, or None if `folder` is a model, in a folder or on the hub.

    Raises:
        InputError: `folder` holds neither an adapter nor a model.
    """
    if not folder.is_dir() and looks_like_a_path(str(folder)):
        raise InputError(
            f"There is no folder {folder}; give a finished run, the folder of an adapter or of a "
            "model, or a model's name on the hub."
        )
    adapter = find_adapter(folder)
    if adapter is None and folder.is_dir() and not (folder / "config.json").exists():
        raise InputError(
            f"{folder} holds no model: neither adapter/{ADAPTER_CONFIG} (a finished run) nor "
            f"{ADAPTER_CONFIG} (an adapter) nor config.json (a model); {_instead_of(folder)}."
        )
    return adapter


def _instead_of(folder: Path) -> str:
    """Say what to give instead: a run inside the folder, if there is one."""
    adapters = sorted(folder.glob(f"*/adapter/{ADAPTER_CONFIG}"))
    if adapters:
        return f"give {adapters[0].parents[1]}"
    return f"finish the run with `loraqa train --out {folder} --resume`, or give another folder"
