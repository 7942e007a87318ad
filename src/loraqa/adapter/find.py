"""What a folder is: a run, an adapter or a model. The same for every command.

1. A folder with `adapter/adapter_config.json` is a finished run, and stands for that adapter.
2. A folder with `adapter_config.json` is an adapter, even if it also holds a model. Its base is
   what `--base` says, or else `loraqa.json`, or else `adapter_config.json`.
3. A folder with `config.json` is a model, and so is a GGUF file.

Where only a base model can be given (`--model`, `--base`), the adapter files in its folder do not
count. What else is installed, such as PEFT, makes no difference.

Importing this loads nothing large, so that a wrong path is reported at once.
"""

from pathlib import Path

from loraqa.errors import InputError
from loraqa.lora.settings import ADAPTER_CONFIG
from loraqa.model.folder import CONFIG, check_model_path, check_no_file, is_local
from loraqa.model.gguf import ENDING

_CHOICE = (
    "a finished run, the folder of an adapter or of a model, a GGUF file, or a model's name on the "
    "hub"
)


def check_source(source: str | Path, base: str | Path | None = None) -> None:
    """Raise `InputError` if `load_model` would find no model or adapter, before other work is done.

    Args:
        source, base: as for `load_model`.
    """
    folder = Path(source).expanduser()
    if find_adapter_or_model(folder, base) is None and not is_local(folder):
        from loraqa.model.source import load_tokenizer

        load_tokenizer(source)


def adapter_of(source: str | Path) -> Path:
    """Return the adapter folder of a run or of an adapter folder.

    Raises:
        InputError: there is no adapter.
    """
    folder = Path(source).expanduser()
    check_no_file(folder, "a finished run or an adapter folder")
    if not folder.is_dir():
        raise InputError(f"There is no folder {source}; give a finished run or an adapter folder.")
    adapter = find_adapter(folder)
    if adapter is None:
        raise InputError(
            f"{source} holds no adapter: neither adapter/{ADAPTER_CONFIG} nor {ADAPTER_CONFIG}; "
            f"{_instead_of(folder)}."
        )
    return adapter


def find_adapter(folder: Path) -> Path | None:
    """Return the adapter folder of a run or of an adapter folder, or None if there is none."""
    places = (folder / "adapter", folder)
    return next((at for at in places if (at / ADAPTER_CONFIG).exists()), None)


def find_adapter_or_model(folder: Path, base: str | Path | None = None) -> Path | None:
    """Return the adapter folder, or None if `folder` is a model: a folder, a file or on the hub.

    Args:
        folder: a run, or the folder of an adapter, or a model.
        base: the base model that was named for the adapter, if any.

    Raises:
        InputError: `folder` holds neither an adapter nor a model, or a model for which a base was
            named.
    """
    check_model_path(folder, _CHOICE)
    adapter = find_adapter(folder)
    if adapter is None and folder.is_dir() and not (folder / CONFIG).exists():
        raise InputError(
            f"{folder} holds no model: neither adapter/{ADAPTER_CONFIG} (a finished run) nor "
            f"{ADAPTER_CONFIG} (an adapter) nor {CONFIG} (a model); {_instead_of(folder)}."
        )
    if adapter is None and base is not None:
        raise InputError(
            f"{folder} holds no adapter, so it has no other base; leave the base (--base) out, or "
            "name an adapter."
        )
    return adapter


def _instead_of(folder: Path) -> str:
    """Say what to give instead: a run or an adapter inside the folder, if there is one.

    PEFT saves each adapter that is not called "default" in a subfolder of its name.
    """
    for path in sorted(folder.glob(f"*/{ADAPTER_CONFIG}")):
        return f"give {path.parent}"
    for path in sorted(folder.glob(f"*/adapter/{ADAPTER_CONFIG}")):
        return f"give {path.parents[1]}"
    if (folder / "settings.yaml").exists():
        return f"finish the run with `loraqa train --out {folder} --resume`, or give another folder"
    for path in sorted(folder.glob(f"*{ENDING}")):
        return f"give {path}"
    return "give another folder"
