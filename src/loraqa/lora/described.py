"""The settings that describe an adapter, read from its files. Importing this loads no PyTorch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from loraqa.errors import InputError
from loraqa.files import read_json
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS

# The settings' names of PEFT's keys.
_NAMES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rank_stabilised",
    "use_dora": "dora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "target_modules": "target_modules",
}
# PEFT's other ways to choose layers, for which the settings have no words.
_OTHER_CHOICES = ("exclude_modules", "layers_to_transform")
PARTS_KEY = "loraqa_rows"
"""The key in the header of an adapter's tensors under which layers adapted in parts are listed."""


def describe_lora(folder: Path) -> dict[str, Any]:
    """Return the values of `LoraSettings` that describe the adapter in `folder`.

    Layers are named one by one where PEFT chose them in a way for which the settings have no words,
    or where some are adapted in parts. Wrong values, and tensors that cannot be read, are explained
    where the adapter is loaded.

    Raises:
        InputError: `adapter_config.json` is missing or broken.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{folder / ADAPTER_CONFIG} is not a JSON object; write it again.")
    known = {_NAMES[key]: value for key, value in config.items() if key in _NAMES and value}
    known["activated"] = bool(config.get("alora_invocation_tokens"))
    shapes, splits = _tensors(folder / TENSORS)
    by_ending = isinstance(targets := config.get("target_modules"), list) or targets == "all-linear"
    if shapes and (splits or not by_ending or any(config.get(key) for key in _OTHER_CHOICES)):
        known["target_modules"] = [name + _parts(splits.get(name)) for name in shapes]
    if splits:
        ranks = {name: shapes[name] // len(split.parts) for name, split in splits.items()}
        alphas = {name: split.alpha for name, split in splits.items()}
        known["rank_pattern"] = ranks | known.get("rank_pattern", {})
        known["alpha_pattern"] = alphas | known.get("alpha_pattern", {})
    return known


class _Split(NamedTuple):
    """The α of a layer adapted in parts, and the names of the parts."""

    alpha: float
    parts: list[str]


def _parts(split: _Split | None) -> str:
    return f"[{','.join(split.parts)}]" if split else ""


def _tensors(path: Path) -> tuple[dict[str, int], dict[str, _Split]]:
    """Return the plain rank of each adapted layer, and how layers are split into parts."""
    try:
        with safe_open(path, "np") as file:
            keys = [key for key in file.keys() if key.endswith(".lora_A.weight")]  # noqa: SIM118
            shapes = {_layer(key): file.get_slice(key).get_shape()[0] for key in keys}
            header = json.loads((file.metadata() or {}).get(PARTS_KEY, "{}"))
        return shapes, {
            name: _Split(split["alpha"], [part["name"] for part in split["rows"]])
            for name, split in header.items()
            if name in shapes and split["rows"]
        }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}


def _layer(key: str) -> str:
    return key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
