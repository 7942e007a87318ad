"""Which base model an adapter belongs to: its place, its commit, the hash of its weights.

Importing this loads no PyTorch.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from loraqa.adapter.info import BaseInfo
from loraqa.files import read_json, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The names of transformers' files.
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def describe_base(
    source: str | Path,
    model: "PreTrainedModel",
    *,
    revision: str | None = None,
    random_weights: bool = False,
    weights: str | None = None,
) -> BaseInfo:
    """Describe a base model: its commit if it is from the hub, and the hash of its weights.

    Args:
        source: the folder or the name on the hub that the model was loaded from.
        model: the loaded model.
        revision: the branch, tag or commit that was asked for.
        random_weights: whether the model has random weights, which have no hash.
        weights: the result of `weights_hash`, if it is known; otherwise it is computed.
    """
    given = Path(source).expanduser()
    local = given.is_dir()
    folder = _folder(source, revision)
    # The folder of a download is named after its commit.
    commit = folder.name if folder else revision
    return BaseInfo(
        source=str(given.resolve()) if local else str(source),
        revision=None if local else commit,
        dtype=str(model.dtype).removeprefix("torch."),
        random_weights=random_weights,
        sha256=None if random_weights else weights or weights_hash(source, revision),
    )


def weights_hash(source: str | Path, revision: str | None = None) -> str | None:
    """Return the SHA-256 of a model's weights, as in `BaseInfo`.

    Returns:
        The hash in hex; None if files of the weights are missing, or do not have transformers'
        names.
    """
    folder = _folder(source, revision)
    if folder is None:
        return None
    if (folder / _WEIGHTS).exists():
        return sha256(folder / _WEIGHTS)
    if not (folder / _INDEX).exists():
        return None
    names = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
    shards = [folder / name for name in names]
    if not all(shard.exists() for shard in shards):
        return None
    hashes = "".join(map(sha256, shards))
    return hashlib.sha256(hashes.encode()).hexdigest()


def _folder(source: str | Path, revision: str | None) -> Path | None:
    """Return the folder of a model: its own, or its download in the hub's cache, if any."""
    given = Path(source).expanduser()
    if given.is_dir():
        return given
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(str(source), _CONFIG, revision=revision)
    return Path(config).parent if isinstance(config, str) else None
