"""Build the encoder of a run from the files of its model, without PyTorch and transformers."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from loraqa.files import read_json
from loraqa.model.source import model_folder
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import ANY_TEXT, SegmentTokenizer, added_before
from loraqa.prompt.template import Template
from loraqa.train.data import Preparation
from loraqa.train.settings import RunSettings

_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_CONFIG = "config.json"
# The names that configurations have for a model's longest input.
_LIMITS = ("max_position_embeddings", "n_positions")


def guess_encoder(preparation: Preparation, settings: RunSettings) -> PromptEncoder | None:
    """Return the encoder that transformers will probably make; None if the files do not tell.

    `PromptEncoder.fingerprint` decides whether the guess was right.
    """
    folder = model_folder(settings.model.source, settings.model.revision)
    if folder is None:
        return None
    try:
        tokenizer = read_tokenizer(folder)
        max_length = settings.prompt.max_length or _read_limit(folder)
    # The files may hold anything. What is wrong with them is reported when they are loaded.
    except Exception:
        return None
    return PromptEncoder(
        preparation.wrap_tokenizer(tokenizer),
        Template(settings.prompt.template),
        max_length,
        settings.prompt.stride,
    )


def read_tokenizer(folder: Path) -> SegmentTokenizer:
    """Build the tokenizer of a model's folder from `tokenizer.json`."""
    backend = Tokenizer.from_file(str(folder / _TOKENIZER))
    config = read_json(folder / _TOKENIZER_CONFIG)
    names = (config.get(f"{key}_token") for key in ("eos", "unk"))
    eos, unknown = (_id_of(backend, name) for name in names)
    if eos is None:
        # GPT-2's tokenizer on the hub names no eos_token.
        eos = int(read_json(folder / _CONFIG)["eos_token_id"])
    added = backend.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    return SegmentTokenizer(
        str(folder),
        backend,
        eos=eos,
        start=added_before(
            backend.encode(ANY_TEXT).ids, backend.encode(ANY_TEXT, add_special_tokens=False).ids
        ),
        control=special - ({unknown} - {eos}),
        names={i: token.content for i, token in added.items()},
    )


def _id_of(backend: Tokenizer, token: str | dict[str, Any] | None) -> int | None:
    name = token["content"] if isinstance(token, dict) else token
    return None if name is None else backend.token_to_id(name)


def _read_limit(folder: Path) -> int:
    config = read_json(folder / _CONFIG)
    config = config.get("text_config", config)
    return int(next(config[name] for name in _LIMITS if name in config))
