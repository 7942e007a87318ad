"""Load a model to answer with: a run, an adapter, a merged model or a base model."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from loraqa.adapter.base import describe_base
from loraqa.adapter.find import adapter_of, find_adapter_or_model
from loraqa.adapter.info import INFO, AdapterInfo, BaseInfo, read_adapter_info
from loraqa.errors import InputError
from loraqa.lora.adapter import load_adapter
from loraqa.lora.peft_config import PeftConfig
from loraqa.model.folder import is_local
from loraqa.model.load import load_base
from loraqa.model.source import position_limit
from loraqa.prompt.defaults import DEFAULT_MAX_ANSWER_TOKENS, DEFAULT_STRIDE
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import DEFAULT_TEMPLATE

logger = logging.getLogger("loraqa")


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its tokenizer, and how it was fine-tuned (None if it was not)."""

    model: PreTrainedModel
    tokenizer: Any
    info: AdapterInfo | None


def load_model(
    source: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    device: str = "auto",
) -> Loaded:
    """Load a run, an adapter folder, a merged model, or a model that was not fine-tuned.

    Args:
        source: a folder, a GGUF file, or the name of a model on the hub.
        base: the base model, if it moved or the adapter does not name one.
        dtype: as for `load_base`; None is the dtype that the adapter was trained with, but float32
            for bfloat16 if the device does not compute in it.
        device: as for `load_base`.

    Raises:
        InputError: the folder holds none of these, or a file is missing or broken.
    """
    folder = Path(source).expanduser()
    adapter = find_adapter_or_model(folder)
    if adapter:
        return Loaded(*_load_adapted(adapter, base, dtype, device))
    info = read_adapter_info(folder) if (folder / INFO).exists() else None
    chosen = dtype or _dtype_of(info)
    model, tokenizer = load_base(source, dtype=chosen, device=device)
    return Loaded(model, tokenizer, info)


def load_adapted(
    source: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    device: str = "auto",
) -> tuple[PreTrainedModel, Any, AdapterInfo]:
    """Load a run or an adapter: model, tokenizer, and how it was fine-tuned.

    Raises:
        InputError: as for `load_model`, or there is no adapter.
    """
    return _load_adapted(adapter_of(source), base, dtype, device)


def _dtype_of(info: AdapterInfo | None) -> str:
    """Return the dtype of training; for bfloat16 "auto", which avoids it if it is slow here."""
    return "auto" if info is None or info.base.dtype == "bfloat16" else info.base.dtype


def _load_adapted(
    folder: Path, base: str | Path | None, dtype: str | None, device: str
) -> tuple[PreTrainedModel, Any, AdapterInfo]:
    info = read_adapter_info(folder) if (folder / INFO).exists() else None
    source, revision = (base, None) if base is not None else _named_base(folder, info)
    random_weights = info is not None and info.base.random_weights
    model, tokenizer = load_base(
        source,
        dtype=dtype or _dtype_of(info),
        device=device,
        revision=revision,
        random_weights=random_weights,
    )
    found = describe_base(
        source,
        model,
        SegmentTokenizer.from_transformers(tokenizer),
        revision=revision,
        random_weights=random_weights,
    )
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
    return model, tokenizer, info.model_copy(update={"base": found})


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
