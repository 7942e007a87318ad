"""Which trees go into which optimizer step, and how a step is cut into micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from loraqa.prompt.tree import Branch, Tree

MicroBatch = list[Tree]
Step = list[MicroBatch]

Size = Callable[[Sequence[Tree]], int]
"""How many tokens the model computes for a batch; another tree or branch never makes it less."""

_Item = TypeVar("_Item")


def tree_tokens(trees: Sequence[Tree]) -> int:
    """What a batch costs where every trunk is computed once: its tokens."""
    return sum(map(len, trees))


def padded_tokens(trees: Sequence[Tree]) -> int:
    """What it costs as one row per question, all as long as the longest of the batch."""
    return sum(len(tree.branches) for tree in trees) * max(tree.longest_path for tree in trees)


@dataclass(frozen=True)
class BatchPlan:
    """The order of training: a pure function of (trees, sizes, seed, epoch).

    Being pure, it needs no state to resume: the epoch and the step within it are its cursor.

    Attributes:
        trees: the training data.
        questions_per_step: an optimizer step takes whole trees until it has so many questions.
        tokens_per_batch: the most tokens in one micro-batch; a larger tree is split, its trunk
            repeated.
        seed: draws the order of each epoch.
        size: what a batch costs.
    """

    trees: Sequence[Tree]
    questions_per_step: int
    tokens_per_batch: int
    seed: int
    size: Size = tree_tokens

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """The steps of an epoch, from step `start` on."""
        for trees in self._steps(epoch)[start:]:
            yield pack(trees, self.tokens_per_batch, self.size)

    def steps_in(self, epoch: int) -> int:
        """How many optimizer steps the epoch has."""
        return len(self._steps(epoch))

    def _steps(self, epoch: int) -> list[list[Tree]]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.trees))
        steps: list[list[Tree]] = []
        questions = self.questions_per_step
        for index in order:
            if questions >= self.questions_per_step:
                steps.append([])
                questions = 0
            tree = self.trees[index]
            steps[-1].append(tree)
            questions += len(tree.branches)
        return steps


def pack(trees: Sequence[Tree], tokens: int, size: Size = tree_tokens) -> Step:
    """Cut trees into batches of at most `tokens`, paths of like length together.

    A branch that is larger with its trunk alone makes a batch of its own.
    """
    pieces = [piece for tree in trees for piece in _split(tree, tokens, size)]
    pieces.sort(key=lambda piece: piece.longest_path)
    return [list(batch) for batch in _cut(pieces, lambda batch: size(batch) <= tokens)]


def _split(tree: Tree, tokens: int, size: Size) -> Iterator[Tree]:
    """Share out the branches among trees of at most `tokens`, but at least one branch each."""
    if size([tree]) <= tokens:
        return iter([tree])

    def with_branches(branches: Sequence[Branch]) -> Tree:
        return replace(tree, branches=tuple(branches))

    runs = _cut(tree.branches, lambda branches: size([with_branches(branches)]) <= tokens)
    return map(with_branches, runs)


def _cut(
    items: Sequence[_Item], fits: Callable[[Sequence[_Item]], bool]
) -> Iterator[Sequence[_Item]]:
    """Cut into runs that fit, each as long as can be, but of one item at least.

    Steps ahead double, so that `fits`, true of the start of whatever it is true of, is asked a few
    times a run instead of for every item.
    """
    start = 0
    while start < len(items):
        end, step = start + 1, 1
        while step:
            if end + step <= len(items) and fits(items[start : end + step]):
                end, step = end + step, 2 * step
            else:
                step //= 2
        yield items[start:end]
        start = end
