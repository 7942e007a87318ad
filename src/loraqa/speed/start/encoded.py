"""Keep encoded training data on disk, so that a data set is tokenized once.

A file is named after everything that its content depends on: data, tokenizer, template, lengths,
and the code that encodes. So a file is never out of date. A damaged file is made again.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import regex

from loraqa import prompt
from loraqa.cache import find_kept, keep
from loraqa.files import keep_newest
from loraqa.prompt.encode import Encoded, PromptEncoder
from loraqa.prompt.encoded_file import load_encoded, save_encoded
from loraqa.squad import QADataset, segmentation
from loraqa.train.data import Preparation

# How many files stay: the ones used last.
_KEPT = 20


def wrap(preparation: Preparation) -> Preparation:
    """Take encoded data from the cache if they are there; else put them there."""

    def encode(encoder: PromptEncoder, data: QADataset) -> Encoded:
        return encode_once(encoder, data, preparation.encode)

    return replace(preparation, encode=encode)


def encode_once(
    encoder: PromptEncoder,
    data: QADataset,
    encode: Callable[[PromptEncoder, QADataset], Encoded],
) -> Encoded:
    """Return `encode(encoder, data)`, from the cache if it has been encoded before."""
    key = _key(encoder, data)
    kept = find_kept("encoded", key, ".safetensors")
    # Another process may remove the file now, because it keeps newer ones.
    with contextlib.suppress(OSError):
        if kept is not None:
            encoded = load_encoded(kept)
            kept.touch()
            return encoded
    encoded = encode(encoder, data)
    kept = keep("encoded", key, ".safetensors", partial(save_encoded, encoded))
    if kept is not None:
        keep_newest(kept.parent, "*.safetensors", _KEPT)
    return encoded


def _key(encoder: PromptEncoder, data: QADataset) -> str:
    parts = [_code_fingerprint(), data.fingerprint, encoder.fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _code_fingerprint() -> str:
    """Return the SHA-256 (hex) of the modules that encode and of the version of `regex`."""
    digest = hashlib.sha256(regex.__version__.encode())
    folders = Path(prompt.__file__).parent, Path(__file__).parent
    modules = [path for folder in folders for path in folder.glob("*.py")]
    for path in sorted([*modules, Path(segmentation.__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
