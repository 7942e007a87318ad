"""What is given as a model: its folder, and which files of it are missing or broken.

A broken file is named here, because the libraries that read it name only what they stumbled over.
Importing this loads nothing large.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraqa.errors import InputError, in_a_line, some_of
from loraqa.files import looks_like_a_path, naming, read_json
from loraqa.lora.settings import ADAPTER_CONFIG
from loraqa.model.gguf import ENDING, check_gguf, is_gguf

CONFIG = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CHOICE = (
    "a folder with config.json, model.safetensors and the tokenizer, a GGUF file, or a model's "
    "name on the hub"
)
_AGAIN = "copy it again from where the model came from"
# A tokenizer is one of these files, and more files beside some of them.
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
_TOKENIZER_OPTIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# No model on the hub has a name with one of these endings, so it is the name of a file.
_FILE_ENDINGS = (ENDING, ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".yaml")


def is_local(path: Path) -> bool:
    """Return whether a model lies on this machine: in a folder, or in a GGUF file."""
    return path.is_dir() or is_gguf(path)


def check_model_path(source: str | Path, choice: str = _CHOICE) -> None:
    """Raise `InputError` if `source` is no folder, no GGUF file, and can be no name on the hub.

    Args:
        source: what was given as a model.
        choice: what can be given, for the message.
    """
    path = Path(source).expanduser()
    if is_gguf(path):
        check_gguf(path)
    else:
        check_no_file(source, choice)


def check_no_file(source: str | Path, choice: str) -> None:
    """Raise `InputError` if `source` is neither a folder nor what a name on the hub may be.

    Args:
        source: what was given as a model or an adapter.
        choice: what can be given, for the message.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return
    if path.exists():
        raise InputError(f"{source} is {_kind(path)}; give {choice}.")
    if looks_like_a_path(str(source)) or path.suffix.lower() in _FILE_ENDINGS:
        kind = "file" if path.suffix.lower() == ENDING else "folder"
        raise InputError(f"There is no {kind} {source}; give {choice}.")


def check_folder(folder: Path) -> None:
    """Raise `InputError` if a folder is no model's, or its config.json is broken."""
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"The folder {folder} has no {CONFIG}{_instead(folder)}; give {_CHOICE}.")
    if not read_object(path).get("model_type"):
        raise InputError(f"{path} names no model_type; {_AGAIN}.")


def check_tokenizer(folder: Path) -> None:
    """Raise `InputError` if a folder has no tokenizer, or a file of it is missing or broken.

    transformers makes an empty tokenizer of a folder without one.
    """
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZERS):
        raise InputError(
            f"{folder} holds no tokenizer, such as tokenizer.json; copy it from where the model "
            "came from."
        )
    whole = (folder / "tokenizer.json").exists()
    if not whole and (folder / "vocab.json").exists() and not (folder / "merges.txt").exists():
        raise InputError(f"{folder} holds the tokenizer's vocab.json, but no merges.txt; {_AGAIN}.")
    for path in (folder / name for name in _TOKENIZER_OPTIONS):
        if path.exists():
            read_object(path)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder's tokenizer."""
    patterns = (*_TOKENIZERS, "merges.txt", *_TOKENIZER_OPTIONS)
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def check_weights(folder: Path) -> None:
    """Raise `InputError` if files of a folder's weights are missing, cut or broken."""
    from safetensors import SafetensorError, safe_open

    for path in weights(folder):
        try:
            with naming(path, "read"), safe_open(path, "np"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"{path} is not a complete safetensors file ({in_a_line(error)}); {_AGAIN}."
            ) from None


def weights(folder: Path) -> list[Path]:
    """Return the files of a folder's weights: one, or several shards in the order of their names.

    Raises:
        InputError: there are none, or some are missing.
    """
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.exists():
        raise InputError(
            f"{folder} holds no weights, {_WEIGHTS}{_instead(folder) or f'; {_AGAIN}'}."
        )
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index} has no weight_map from tensors to files; {_AGAIN}.")
    names = sorted(set(shards.values()))
    missing = [name for name in names if not (folder / name).exists()]
    if missing or not names:
        raise InputError(
            f"{folder} lacks {some_of(missing) or 'all weights'}, which {_INDEX} names; copy the "
            "missing files from where the model came from."
        )
    return [folder / name for name in names]


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON file that holds an object. Raises `InputError` if it does not."""
    try:
        value = read_json(path)
    except InputError as error:
        raise InputError(f"{str(error).removesuffix('.')}; {_AGAIN}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; {_AGAIN}.")
    return value


def _kind(path: Path) -> str:
    """Say what a file is that was given instead of a folder."""
    return "a base model" if path.suffix.lower() == ENDING else "a file, not a model's folder"


def _instead(folder: Path) -> str:
    """Say what a folder holds instead of a model."""
    if (folder / ADAPTER_CONFIG).exists() or (folder / "adapter" / ADAPTER_CONFIG).exists():
        return ": it holds an adapter, which needs a base model"
    for path in folder.glob(f"*{ENDING}"):
        return f", but a GGUF file, which is given by its own path, {path}"
    if next(folder.glob("pytorch_model*.bin"), None):
        return (
            ", only a pickle, which can run code when it is read; save the model again with "
            "transformers, which writes safetensors"
        )
    return ""
