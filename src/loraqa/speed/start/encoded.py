"""Encoded training data kept on disk: a data set is tokenized once.

A file is named after all that its content depends on: data, tokenizer, template, lengths, and the
code that encodes. So nothing in it can be out of date; a damaged one is made again.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from loraqa.files import cache_folder, replacing, writing_tensors
from loraqa.garbage import no_garbage
from loraqa.prompt.encode import Encoded, EncodingCounts, PromptEncoder
from loraqa.prompt.tree import Branch, Tree
from loraqa.squad import QADataset

Arrays = dict[str, NDArray[np.int32]]

# The files used last stay.
_KEPT = 20


def encode_training_once(encoder: PromptEncoder, data: QADataset) -> Encoded:
    """`encoder.encode_training(data.passages)`, from the cache where it was done before."""
    return _encode_once(encoder, data, None)[0]


def write_encoded(
    path: Path, encoder: PromptEncoder, data: QADataset, texts: Sequence[str]
) -> EncodingCounts:
    """Leave what `encode_training_once` gives in a file, and tell its counts.

    Args:
        path: of the file.
        encoder, data: what encodes, and what is to be.
        texts: see `PromptEncoder.encode_training`.
    """
    encoded, kept = _encode_once(encoder, data, texts)
    with contextlib.suppress(OSError):
        if kept is not None:
            # A tenth of the time that it takes to write it once more.
            shutil.copyfile(kept, path)
            return encoded.counts
    save_encoded(encoded, path)
    return encoded.counts


def _encode_once(
    encoder: PromptEncoder, data: QADataset, texts: Sequence[str] | None
) -> tuple[Encoded, Path | None]:
    """The trees, and the file of the cache that holds them, if one does."""
    path = cache_folder("encoded") / f"{_key(encoder, data)}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError):
        encoded = load_encoded(path)
        path.touch()
        return encoded, path
    encoded = encoder.encode_training(data.passages, texts)
    try:
        with replacing(path) as temporary:
            save_encoded(encoded, temporary)
        _remove_oldest(path.parent)
    except OSError:
        # Where nothing can be kept, the next run encodes anew.
        return encoded, None
    return encoded, path


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write trees and counts as safetensors; raise `OSError` where it cannot be."""
    arrays = _flatten(encoded.trees)
    ids = [branch.question_id for tree in encoded.trees for branch in tree.branches]
    metadata = {
        "question_ids": json.dumps(ids),
        "counts": json.dumps(encoded.counts.to_json()),
        "sha256": _digest(arrays),
    }
    with writing_tensors(path):
        save_file(arrays, path, metadata)


@no_garbage()
def load_encoded(path: Path) -> Encoded:
    """The reverse of `save_encoded`.

    Raises:
        OSError, SafetensorError, KeyError, ValueError: the file is missing or damaged.
    """
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _digest(arrays) != metadata["sha256"]:
        raise ValueError(f"{path} is damaged")
    counts = EncodingCounts(**json.loads(metadata["counts"]))
    return Encoded(_unflatten(arrays, json.loads(metadata["question_ids"])), counts)


def _key(encoder: PromptEncoder, data: QADataset) -> str:
    parts: list[Any] = [
        _code_fingerprint(),
        data.fingerprint,
        encoder.tokenizer.fingerprint,
        encoder.template.text,
        encoder.max_length,
        encoder.stride,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _code_fingerprint() -> str:
    """SHA-256 (hex) of the modules beside this one, in which all encoding is done."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _flatten(trees: Sequence[Tree]) -> Arrays:
    """All ids in a row, segment by segment, and what is needed to cut them apart again."""
    segments = [segment for tree in trees for segment in _segments(tree)]
    return {
        "ids": np.concatenate([*segments, np.empty(0, np.int32)]),
        "segment_lengths": np.array([len(segment) for segment in segments], np.int32),
        "branches": np.array([len(tree.branches) for tree in trees], np.int32),
        "passages": np.array([tree.passage for tree in trees], np.int32),
        "windows": np.array([tree.window for tree in trees], np.int32).reshape(-1, 2),
    }


def _segments(tree: Tree) -> list[NDArray[np.int32]]:
    of_branches = chain.from_iterable((branch.prompt, branch.answer) for branch in tree.branches)
    return [tree.trunk, *of_branches]


def _unflatten(arrays: Arrays, question_ids: Sequence[str]) -> list[Tree]:
    edges = accumulate(arrays["segment_lengths"].tolist(), initial=0)
    segments = (arrays["ids"][start:end] for start, end in pairwise(edges))
    names = iter(question_ids)
    trees = []
    of_trees = zip(arrays["branches"], arrays["passages"], arrays["windows"], strict=True)
    for branches, passage, (start, end) in of_trees:
        trunk = next(segments)
        read = [
            Branch(name, next(segments), next(segments)) for name in islice(names, int(branches))
        ]
        trees.append(Tree(trunk, tuple(read), int(passage), (int(start), int(end))))
    return trees


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _remove_oldest(folder: Path) -> None:
    """The folder is for this alone, as all in it may go."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in files[:-_KEPT]:
        path.unlink(missing_ok=True)
