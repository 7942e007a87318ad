"""Load a model to answer with: a run, an adapter, a merged model or a base model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from loraqa.adapter.base import describe_base, weights_hash
from loraqa.adapter.find import adapter_of, find_adapter_or_model
from loraqa.adapter.info import INFO, AdapterInfo, BaseInfo, read_adapter_info
from loraqa.errors import InputError, some_of
from loraqa.lora.adapter import load_adapter
from loraqa.lora.layer import LoraLinear
from loraqa.lora.peft_config import PeftConfig
from loraqa.lora.switch import take_out
from loraqa.model.folder import is_local
from loraqa.model.load import load_base
from loraqa.model.source import position_limit
from loraqa.prompt.defaults import DEFAULT_MAX_ANSWER_TOKENS, DEFAULT_STRIDE
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import DEFAULT_TEMPLATE

logger = logging.getLogger("loraqa")

# What `_dtype_of` returns.
_BY_WIDTH = ("auto", "float32", "float64")
_NOT_QUANTISED = "none"


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its tokenizer, and how it was fine-tuned (None if it was not)."""

    model: PreTrainedModel
    tokenizer: Any
    info: AdapterInfo | None


@dataclass(frozen=True)
class Adapter:
    """One of several adapters: its folder, how it was trained, and its layers by their names."""

    folder: Path
    info: AdapterInfo
    layers: dict[str, LoraLinear]


def load_model(
    source: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    quantisation: str | None = None,
    device: str = "auto",
) -> Loaded:
    """Load a run, an adapter folder, a merged model, or a model that was not fine-tuned.

    Args:
        source: a folder, a GGUF file, or the name of a model on the hub.
        base: the base model, if it moved or the adapter does not name one.
        dtype: as for `load_base`; None is the dtype that the adapter was trained with, but float32
            for bfloat16 if the device does not compute in it.
        quantisation: as for `load_base`; None is that with which the adapter was trained.
        device: as for `load_base`.

    Raises:
        InputError: the folder holds none of these, a file is missing or broken, or a base was given
            for a model, which has none.
    """
    folder = Path(source).expanduser()
    adapter = find_adapter_or_model(folder, base)
    if adapter:
        return Loaded(*_load_adapted(adapter, base, dtype, quantisation, device))
    info = _info_of(folder)
    chosen = dtype or _dtype_of(info)
    model, tokenizer = load_base(
        source, dtype=chosen, device=device, quantisation=quantisation or _NOT_QUANTISED
    )
    return Loaded(model, tokenizer, info)


def load_adapted(
    source: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    quantisation: str | None = None,
    device: str = "auto",
) -> tuple[PreTrainedModel, Any, AdapterInfo]:
    """Load a run or an adapter: model, tokenizer, and how it was fine-tuned.

    Raises:
        InputError: as for `load_model`, or there is no adapter.
    """
    return _load_adapted(adapter_of(source), base, dtype, quantisation, device)


def load_adapters(
    sources: Mapping[str, str | Path],
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    device: str = "auto",
) -> tuple[PreTrainedModel, Any, dict[str, Adapter]]:
    """Load several runs or adapters of one base, which is loaded once, in full precision.

    Args:
        sources: a run or an adapter folder for each name.
        base, device: as for `load_model`.
        dtype: as for `load_base`; None is the dtype that the adapters were trained with, or the
            widest of several.

    Returns:
        The base without an adapter, its tokenizer, and the adapters by their names.

    Raises:
        InputError: as for `load_adapted`, there are no sources, an adapter changes nothing, or the
            adapters were trained on different bases.
    """
    folders = {name: adapter_of(source) for name, source in sources.items()}
    if not folders:
        raise InputError("There are no adapters to load; name at least one.")
    infos = {name: _info_of(folder) for name, folder in folders.items()}
    first = next(iter(folders))
    chosen = dtype or _common_dtype(infos)
    if int8 := [name for name, info in infos.items() if info and info.base.quantisation == "int8"]:
        logger.warning(
            f"{some_of(int8)} learned over int8 weights; here all adapters share weights in full."
        )
    model, tokenizer, found = _load_base_of(
        folders[first], infos[first], base, chosen, _NOT_QUANTISED, device
    )
    adapters = {}
    for name, folder in folders.items():
        if base is None and name != first:
            _check_same_base(folders[first], folder, infos[name], found)
        info = _add_adapter(model, folder, infos[name], found, base)
        adapters[name] = Adapter(folder, info, take_out(model))
        if not adapters[name].layers:
            raise InputError(f"The adapter in {folder} changes no layer of its base; leave it out.")
    return model, tokenizer, adapters


def _common_dtype(infos: Mapping[str, AdapterInfo | None]) -> str:
    """Return the dtype of all trainings that are known, or the widest of several."""
    dtypes = {name: _dtype_of(info) for name, info in infos.items() if info}
    widest = max(dtypes.values(), key=_BY_WIDTH.index, default="auto")
    if narrower := [name for name, dtype in dtypes.items() if dtype != widest]:
        logger.warning(
            f"{some_of(narrower)} computed in a narrower dtype in training; here all adapters "
            f"compute in {widest}."
        )
    return widest


def _check_same_base(first: Path, folder: Path, info: AdapterInfo | None, found: BaseInfo) -> None:
    """Raise `InputError` if the base of the adapter in `folder` is not that of `first`, `found`."""
    if info:
        source, differ = info.base.source, bool(info.base.changes(found))
    else:
        source, revision = _named_base(folder, info)
        differ = weights_hash(source, revision) != found.sha256
    if differ:
        raise InputError(
            f"The adapters in {first} and {folder} were trained on different base models, "
            f"{found.source} and {source}, but one base is loaded for all; use each alone, or name "
            "one base with --base."
        )


def _dtype_of(info: AdapterInfo | None) -> str:
    """Return the dtype of training; for bfloat16 "auto", which avoids it if it is slow here."""
    return "auto" if info is None or info.base.dtype == "bfloat16" else info.base.dtype


def _load_adapted(
    folder: Path,
    base: str | Path | None,
    dtype: str | None,
    quantisation: str | None,
    device: str,
) -> tuple[PreTrainedModel, Any, AdapterInfo]:
    info = _info_of(folder)
    dtype = dtype or _dtype_of(info)
    quantisation = quantisation or (info.base.quantisation if info else _NOT_QUANTISED)
    model, tokenizer, found = _load_base_of(folder, info, base, dtype, quantisation, device)
    return model, tokenizer, _add_adapter(model, folder, info, found, base)


def _info_of(folder: Path) -> AdapterInfo | None:
    return read_adapter_info(folder) if (folder / INFO).exists() else None


def _load_base_of(
    folder: Path,
    info: AdapterInfo | None,
    base: str | Path | None,
    dtype: str,
    quantisation: str,
    device: str,
) -> tuple[PreTrainedModel, Any, BaseInfo]:
    """Load the base model of the adapter in `folder`: model, tokenizer, and what it is."""
    source, revision = (base, None) if base is not None else _named_base(folder, info)
    random_weights = info is not None and info.base.random_weights
    model, tokenizer = load_base(
        source,
        dtype=dtype,
        device=device,
        revision=revision,
        random_weights=random_weights,
        quantisation=quantisation,
    )
    found = describe_base(
        source,
        model,
        SegmentTokenizer.from_transformers(tokenizer),
        revision=revision,
        random_weights=random_weights,
    )
    return model, tokenizer, found


def _add_adapter(
    model: PreTrainedModel,
    folder: Path,
    info: AdapterInfo | None,
    found: BaseInfo,
    base: str | Path | None,
) -> AdapterInfo:
    """Add the adapter in `folder` to its base, which is as `found` says; `base` if it was given."""
    if info is None:
        info = _assumed_info(folder, found, model)
    changes = " and ".join(info.base.changes(found))
    if changes and base is None:
        raise InputError(
            f"The base model {found.source} is not what it was when the adapter in {folder} was "
            f"trained: {changes} changed; restore it, or name a base with --base."
        )
    load_adapter(model, folder)
    if changes:
        logger.warning(
            f"The base model {found} is not the one that the adapter was trained on, {info.base}: "
            f"{changes} changed; its answers may be worse."
        )
    return info.model_copy(update={"base": found})


def _named_base(folder: Path, info: AdapterInfo | None) -> tuple[str, str | None]:
    """Return source and revision of the base model that the adapter's files name."""
    if info:
        source, revision = info.base.source, info.base.revision
    else:
        config = PeftConfig.read(folder)
        source, revision = config.base_model_name_or_path or "", config.revision
    if not source:
        raise InputError(f"{folder} does not name its base model; name it with --base.")
    if Path(source).is_absolute() and not is_local(Path(source)):
        raise InputError(
            f"The base model of {folder}, {source}, does not exist; say where it is with --base."
        )
    return source, revision


def _assumed_info(folder: Path, base: BaseInfo, model: PreTrainedModel) -> AdapterInfo:
    """Return the defaults, for an adapter that loraqa did not train."""
    logger.warning(
        "%s has no %s to say how its prompts were written; they are assumed to be %r.",
        folder,
        INFO,
        DEFAULT_TEMPLATE,
    )
    return AdapterInfo(
        base=base,
        template=DEFAULT_TEMPLATE,
        max_length=position_limit(model.config),
        stride=DEFAULT_STRIDE,
        max_answer_tokens=DEFAULT_MAX_ANSWER_TOKENS,
        version="1.1",
    )
