"""The adapter that a training goes on from. Importing this loads no PyTorch."""

import hashlib
from typing import Any

from loraqa.adapter.find import adapter_of
from loraqa.adapter.info import INFO, BaseInfo, read_adapter_info
from loraqa.errors import InputError
from loraqa.files import read_json, sha256
from loraqa.lora.described import describe_lora
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS


def settings_of(start: str) -> dict[str, dict[str, Any]]:
    """Return the settings of base, template and LoRA, as far as the files of an adapter tell them.

    Raises:
        InputError: there is no adapter, or it is damaged.
    """
    folder = adapter_of(start)
    lora = describe_lora(folder)
    if not (folder / INFO).exists():
        config = read_json(folder / ADAPTER_CONFIG)
        named = {"source": "base_model_name_or_path", "revision": "revision"}
        model = {key: config[name] for key, name in named.items() if config.get(name)}
        return {"model": model, "lora": lora}
    info = read_adapter_info(folder)
    base = info.base
    model = {
        "source": base.source,
        "revision": base.revision,
        # Some devices do not compute in bfloat16, or are slow in it.
        "dtype": "auto" if base.dtype == "bfloat16" else base.dtype,
        "quantisation": base.quantisation,
        "random_weights": base.random_weights,
    }
    return {"model": model, "prompt": {"template": info.template}, "lora": lora}


def check_base(start: str, now: BaseInfo) -> None:
    """Raise `InputError` if the adapter is known to belong to another base than `now`."""
    folder = adapter_of(start)
    if not (folder / INFO).exists():
        return
    before = read_adapter_info(folder).base
    if changes := " and ".join(before.changes(now)):
        raise InputError(
            f"The base model {now.source} is not what it was when the adapter in {folder} was "
            f"trained: {changes} changed; go on over that base, {before}."
        )


def fingerprint(start: str) -> str:
    """Return a SHA-256 of what decides the outputs of the adapter, in hex."""
    folder = adapter_of(start)
    hashes = [sha256(folder / name) for name in (ADAPTER_CONFIG, TENSORS)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
