"""Which base model an adapter belongs to: its place, its commit, the hash of its weights."""

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from loraqa.adapter.info import BaseInfo
from loraqa.files import read_json, sha256


def describe_base(
    source: str | Path,
    model: PreTrainedModel,
    *,
    revision: str | None = None,
    random_weights: bool = False,
) -> BaseInfo:
    """Describe a base model: its commit if it is from the hub, and the hash of its weights.

    Args:
        source: the folder or the name on the hub that the model was loaded from.
        model: the loaded model.
        revision: the branch, tag or commit that was asked for.
        random_weights: whether the model has random weights, which have no hash.
    """
    given = Path(source).expanduser()
    local = given.is_dir()
    folder = given if local else _downloaded(str(source), revision)
    # The folder of a download is named after its commit.
    commit = folder.name if folder else revision
    return BaseInfo(
        source=str(given.resolve()) if local else str(source),
        revision=None if local else commit,
        dtype=str(model.dtype).removeprefix("torch."),
        random_weights=random_weights,
        sha256=_weights_hash(folder) if folder and not random_weights else None,
    )


def _downloaded(name: str, revision: str | None) -> Path | None:
    """Return the folder in the hub's cache that a model was loaded from."""
    config = try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _weights_hash(folder: Path) -> str | None:
    """Return `BaseInfo.sha256`, or None if the weights' files do not have transformers' names."""
    whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if whole.exists():
        return sha256(whole)
    if not index.exists():
        return None
    shards = sorted(set(read_json(index)["weight_map"].values()))
    hashes = "".join(sha256(folder / name) for name in shards)
    return hashlib.sha256(hashes.encode()).hexdigest()
