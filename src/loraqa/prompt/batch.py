"""Batches of trees as tensors: one packed sequence, or padded rows.

A `TreeBatch` computes every trunk once. A `PaddedBatch` has one row per question and repeats the
context; it is the reference in tests, and the input of models that cannot compute trees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from loraqa.prompt.tree import Branch, TokenIds, Tree


@dataclass(frozen=True)
class TreeSpan:
    """The place of a tree in a packed sequence: its trunk, then its branches in order.

    Attributes:
        start: index of the first trunk token.
        trunk: number of trunk tokens.
        branches: number of tokens of each branch.
    """

    start: int
    trunk: int
    branches: tuple[int, ...]

    @property
    def branches_start(self) -> int:
        """Index of the first branch token."""
        return self.start + self.trunk

    @property
    def end(self) -> int:
        """Index after the last branch token."""
        return self.branches_start + sum(self.branches)

    def branch_slices(self) -> list[slice]:
        """Return the slice of each branch in the packed sequence."""
        edges = list(accumulate(self.branches, initial=self.branches_start))
        return [slice(start, end) for start, end in pairwise(edges)]


@dataclass(frozen=True)
class TreeBatch:
    """Trees packed into one sequence of T tokens, of which S predict a supervised token.

    Attributes:
        input_ids: (1, T) token ids.
        position_ids: (1, T) positions; the positions of a branch continue those of its trunk.
        spans: the place of each tree.
        supervised: (S,) indices of the predicting tokens, in the order of trees and branches.
        targets: (S,) ids of the predicted tokens; empty for branches without an answer.
        in_branch: (1, T) booleans, true for the tokens of branches.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: tuple[TreeSpan, ...]
    supervised: Tensor
    targets: Tensor
    in_branch: Tensor

    @property
    def path_lengths(self) -> list[int]:
        """Length of each branch plus its trunk, in tokens."""
        return [span.trunk + length for span in self.spans for length in span.branches]


@dataclass(frozen=True)
class PaddedBatch:
    """One row of at most L tokens for each of N questions, padded on one side.

    Attributes:
        input_ids: (N, L) token ids.
        attention_mask: (N, L), 0 for padding; the padding id may also occur in the text.
        position_ids: (N, L) positions, counted from the first token that is not padding.
        labels: (N, L) supervised token ids, -100 elsewhere.
        in_branch: (N, L) booleans, true from the first token after the context on.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    in_branch: Tensor


def collate_trees(trees: Sequence[Tree]) -> TreeBatch:
    """Pack trees into one sequence. A branch without an answer predicts at its prompt's end."""
    ids: list[TokenIds] = []
    positions: list[TokenIds] = []
    supervised: list[TokenIds] = []
    spans: list[TreeSpan] = []
    in_branch: list[Tensor] = []
    start = 0
    for tree in trees:
        trunk = len(tree.trunk)
        ids.append(tree.trunk)
        positions.append(np.arange(trunk, dtype=np.int32))
        spans.append(TreeSpan(start, trunk, tuple(map(len, tree.branches))))
        starts = accumulate(map(len, tree.branches), initial=start + trunk)
        for branch, branch_start in zip(tree.branches, starts, strict=False):
            ids.append(branch.inputs)
            positions.append(np.arange(trunk, trunk + len(branch), dtype=np.int32))
            supervised.append(branch_start + _predicting(branch))
        in_branch.append(torch.arange(len(tree)) >= trunk)
        start += len(tree)
    return TreeBatch(
        input_ids=_tensor(ids)[None],
        position_ids=_tensor(positions)[None],
        spans=tuple(spans),
        supervised=_tensor(supervised),
        targets=_tensor([branch.answer for tree in trees for branch in tree.branches]),
        in_branch=torch.cat(in_branch)[None],
    )


def collate_padded(
    trees: Sequence[Tree], pad_id: int, side: Literal["left", "right"] = "left"
) -> PaddedBatch:
    """Return one row per question, padded to the length of the longest."""
    rows = [
        (np.concatenate([tree.trunk, branch.inputs]), branch)
        for tree in trees
        for branch in tree.branches
    ]
    shape = len(rows), max(len(ids) for ids, _ in rows)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    in_branch = torch.zeros(shape, dtype=torch.bool)
    for row, (ids, branch) in enumerate(rows):
        end = shape[1] if side == "left" else len(ids)
        input_ids[row, end - len(ids) : end] = torch.from_numpy(ids)
        attention_mask[row, end - len(ids) : end] = 1
        position_ids[row, end - len(ids) : end] = torch.arange(len(ids))
        labels[row, end - len(branch.answer) : end] = torch.from_numpy(branch.answer)
        in_branch[row, end - len(branch) :] = True
    return PaddedBatch(input_ids, attention_mask, position_ids, labels, in_branch)


def _predicting(branch: Branch) -> TokenIds:
    """Return the indices of the branch's predicting tokens, from the last of the prompt on."""
    return np.arange(len(branch.prompt) - 1, len(branch), dtype=np.int32)


def _tensor(pieces: Sequence[TokenIds]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int32), *pieces])).long()
