"""Assign trees to optimizer steps, and split steps into micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Protocol, TypeVar

import numpy as np

from loraqa.prompt.tree import Branch, Tree

MicroBatch = list[Tree]
Step = list[MicroBatch]

Size = Callable[[Sequence[Tree]], int]
"""Number of tokens computed for a batch; it must not decrease as trees or branches are added."""

_Item = TypeVar("_Item")

# The order is random, so that many steps stand for all.
_SAMPLED = 200


def tree_tokens(trees: Sequence[Tree]) -> int:
    """Return the size of a batch as a packed sequence, where every trunk is computed once."""
    return sum(map(len, trees))


def padded_tokens(trees: Sequence[Tree]) -> int:
    """Return the size of a batch as padded rows, one per question."""
    return sum(len(tree.branches) for tree in trees) * max(tree.longest_path for tree in trees)


class Plan(Protocol):
    """The steps of a training, epoch by epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """Yield the steps of an epoch, from step `start` on."""
        ...

    def steps_in(self, epoch: int) -> int:
        """Return the number of optimizer steps in the epoch."""
        ...


@dataclass(frozen=True)
class ChosenSteps:
    """A `Plan` of the same steps in each epoch."""

    steps: Sequence[Step]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Step]:  # noqa: ARG002
        """See `Plan`."""
        yield from self.steps[start:]

    def steps_in(self, epoch: int) -> int:  # noqa: ARG002
        """See `Plan`."""
        return len(self.steps)


@dataclass(frozen=True)
class BatchPlan:
    """The order of training, a pure function of (trees, sizes, seed, epoch).

    Resuming needs no state besides the epoch and the step in the epoch.

    Attributes:
        trees: the training data.
        questions_per_step: an optimizer step takes whole trees until it has this many questions.
        tokens_per_batch: maximum size of a micro-batch in tokens; larger trees are split, and
            each part repeats the trunk.
        seed: random seed for the order of each epoch.
        size: the size of a batch in tokens.
    """

    trees: Sequence[Tree]
    questions_per_step: int
    tokens_per_batch: int
    seed: int
    size: Size = tree_tokens

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """Yield the steps of an epoch, from step `start` on."""
        for trees in self._steps(epoch)[start:]:
            yield pack(trees, self.tokens_per_batch, self.size)

    def steps_in(self, epoch: int) -> int:
        """Return the number of optimizer steps in the epoch."""
        return len(self._steps(epoch))

    def tokens_per_step(self) -> float:
        """Return the mean size of a step in the sample."""
        return fmean(map(self.tokens, self.sample()))

    def sample(self) -> list[Step]:
        """Return the steps of the first epoch; if there are many, the first of them."""
        return list(islice(self.epoch(0), _SAMPLED))

    def tokens(self, step: Step) -> int:
        """Return the size of a step."""
        return sum(map(self.size, step))

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
    """Split trees into batches of at most `tokens`, each with paths of similar length.

    A single branch that is too large together with its trunk gets a batch of its own.
    """
    pieces = [piece for tree in trees for piece in _split(tree, tokens, size)]
    pieces.sort(key=lambda piece: piece.longest_path)
    return [list(batch) for batch in _cut(pieces, lambda batch: size(batch) <= tokens)]


def _split(tree: Tree, tokens: int, size: Size) -> Iterator[Tree]:
    """Split a tree into trees of at most `tokens`, but with at least one branch each."""
    if size([tree]) <= tokens:
        return iter([tree])

    def with_branches(branches: Sequence[Branch]) -> Tree:
        return replace(tree, branches=tuple(branches))

    runs = _cut(tree.branches, lambda branches: size([with_branches(branches)]) <= tokens)
    return map(with_branches, runs)


def _cut(
    items: Sequence[_Item], fits: Callable[[Sequence[_Item]], bool]
) -> Iterator[Sequence[_Item]]:
    """Yield consecutive runs, each as long as `fits` allows, but of at least one item.

    A prefix of a fitting run must fit, too: the search for the end of a run doubles its step, so
    that it calls `fits` a few times per run instead of once per item.
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
