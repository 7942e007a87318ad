"""Finding what is to answer: a run, an adapter, a model.

Imports nothing large, so that a path that is wrong is told at once.
"""

from pathlib import Path

from loraqa.errors import InputError
from loraqa.files import looks_like_a_path
from loraqa.lora.settings import ADAPTER_CONFIG


def check_source(source: str | Path) -> None:
    """Raise `InputError` where `load_model` would find nothing, before other work is done."""
    folder = Path(source).expanduser()
    if find_adapter_or_model(folder) is None and not folder.is_dir():
        from loraqa.model.source import load_tokenizer

        load_tokenizer(source)


def adapter_of(source: str | Path) -> Path:
    """`find_adapter`, where there must be one.

    Raises:
        InputError: there is none.
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
    """Where the adapter of a run, or of an adapter folder, lies."""
    places = (folder / "adapter", folder)
    return next((at for at in places if (at / ADAPTER_CONFIG).exists()), None)


def find_adapter_or_model(folder: Path) -> Path | None:
    """`find_adapter`; None is a model, in the folder or on the hub."""
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
    """What to do where a folder is none of these, but perhaps one in it is a run."""
    adapters = sorted(folder.glob(f"*/adapter/{ADAPTER_CONFIG}"))
    if adapters:
        return f"give {adapters[0].parents[1]}"
    return "finish the run with `loraqa train --resume`, or give another folder"
