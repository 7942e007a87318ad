"""Encoded data in a file, as safetensors."""

import json
from collections.abc import Sequence
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from loraqa.files import writing_tensors
from loraqa.garbage import no_garbage
from loraqa.prompt.encode import Encoded, EncodingCounts
from loraqa.prompt.tree import Branch, Tree

Arrays = dict[str, NDArray[np.int32]]


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write trees and counts as safetensors. Raises `OSError` if that fails."""
    arrays = _flatten(encoded.trees)
    ids = [branch.question_id for tree in encoded.trees for branch in tree.branches]
    metadata = {
        "question_ids": json.dumps(ids),
        "counts": json.dumps(encoded.counts.to_json()),
    }
    with writing_tensors(path):
        save_file(arrays, path, metadata)


@no_garbage()
def load_encoded(path: Path) -> Encoded:
    """Read what `save_encoded` wrote. Raises `OSError` if the file cannot be read."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    counts = EncodingCounts(**json.loads(metadata["counts"]))
    return Encoded(_unflatten(arrays, json.loads(metadata["question_ids"])), counts)


def _flatten(trees: Sequence[Tree]) -> Arrays:
    """Put all ids into one array, with the lengths of its segments."""
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
