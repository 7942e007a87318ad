"""Keep encoded training data on disk, so that a data set is tokenized once.

A file is named after everything that its content depends on: data, tokenizer, template, lengths,
and the code that encodes. So a file is never out of date. A damaged file is made again.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

from loraqa import prompt
from loraqa.files import cache_folder, keep_newest, replacing
from loraqa.prompt.encode import Encoded, PromptEncoder
from loraqa.prompt.encoded_file import load_encoded, save_encoded
from loraqa.squad import QADataset
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
    path = cache_folder("encoded") / f"{_key(encoder, data)}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError):
        encoded = load_encoded(path)
        path.touch()
        return encoded
    encoded = encode(encoder, data)
    # If the cache is not writable, the next run encodes again.
    with contextlib.suppress(OSError):
        with replacing(path) as temporary:
            save_encoded(encoded, temporary)
        keep_newest(path.parent, "*.safetensors", _KEPT)
    return encoded


def _key(encoder: PromptEncoder, data: QADataset) -> str:
    parts = [_code_fingerprint(), data.fingerprint, encoder.fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _code_fingerprint() -> str:
    """Return the SHA-256 (hex) of the modules that encode."""
    digest = hashlib.sha256()
    folders = Path(prompt.__file__).parent, Path(__file__).parent
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
