"""Which base model an adapter belongs to: its place, its commit, and what it consists of.

Importing this loads no PyTorch.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraqa.adapter.info import BaseInfo
from loraqa.errors import InputError
from loraqa.files import sha256
from loraqa.model.folder import is_local
from loraqa.model.folder import weights as weights_files
from loraqa.model.gguf import is_gguf
from loraqa.model.source import model_folder
from loraqa.prompt.segments import SegmentTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Keys of config.json that do not change what a model computes in a given dtype.
_COSMETIC = frozenset(
    {
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def describe_base(
    source: str | Path,
    model: "PreTrainedModel",
    tokenizer: SegmentTokenizer,
    *,
    revision: str | None = None,
    random_weights: bool = False,
    weights: str | None = None,
) -> BaseInfo:
    """Describe a base model: its commit if it is from the hub, and everything that it consists of.

    Args:
        source: the folder, GGUF file or name on the hub that the model was loaded from.
        model: the loaded model.
        tokenizer: its tokenizer.
        revision: the branch, tag or commit that was asked for.
        random_weights: whether the model has random weights, which have no hash.
        weights: the result of `weights_hash`, if it is known; otherwise it is computed.
    """
    from loraqa.lora.int8 import is_quantised

    given = Path(source).expanduser()
    local = is_local(given)
    folder = model_folder(source, revision)
    # The folder of a download is named after its commit.
    commit = folder.name if folder else revision
    return BaseInfo(
        source=str(given.resolve()) if local else str(source),
        revision=None if local else commit,
        dtype=str(model.dtype).removeprefix("torch."),
        quantisation="int8" if is_quantised(model) else "none",
        random_weights=random_weights,
        sha256=None if random_weights else weights or weights_hash(source, revision),
        config=_essentials(json.loads(model.config.to_json_string(False), parse_constant=str)),
        tokenizer_sha256=tokenizer.fingerprint,
    )


def weights_hash(source: str | Path, revision: str | None = None) -> str | None:
    """Return the SHA-256 of a model's weights, as in `BaseInfo`; of a GGUF file, that of the file.

    Returns:
        The hash in hex; None if files of the weights are missing, or do not have transformers'
        names.
    """
    given = Path(source).expanduser()
    if is_gguf(given):
        return sha256(given)
    folder = model_folder(source, revision)
    if folder is None:
        return None
    try:
        hashes = list(map(sha256, weights_files(folder)))
    except InputError:
        return None
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _essentials(config: Any) -> Any:
    """Return a configuration without the keys that change nothing, in parts of it too."""
    if not isinstance(config, dict):
        return config
    return {
        key: _essentials(value)
        for key, value in config.items()
        if key not in _COSMETIC and not key.startswith("_")
    }
