"""Which trees go into which optimizer step, and how a step is cut into micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraqa.prompt.tree import Branch, Tree

MicroBatch = list[Tree]
Step = list[MicroBatch]


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
        size: the tokens a tree costs, as computed by the model.
    """

    trees: Sequence[Tree]
    questions_per_step: int
    tokens_per_batch: int
    seed: int
    size: Callable[[Tree], int] = len

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


def pack(trees: Sequence[Tree], tokens: int, size: Callable[[Tree], int] = len) -> Step:
    """Cut trees into batches of at most `tokens`, paths of like length together."""
    pieces = [piece for tree in trees for piece in _split(tree, tokens, size)]
    batches: Step = []
    room = 0
    for piece in sorted(pieces, key=lambda tree: tree.longest_path):
        if not batches or size(piece) > room:
            batches.append([])
            room = tokens
        batches[-1].append(piece)
        room -= size(piece)
    return batches


def _split(tree: Tree, tokens: int, size: Callable[[Tree], int]) -> Iterator[Tree]:
    """Share out the branches among trees of at most `tokens`, but at least one branch each."""
    chosen: tuple[Branch, ...] = ()
    for branch in tree.branches:
        if chosen and size(replace(tree, branches=(*chosen, branch))) > tokens:
            yield replace(tree, branches=chosen)
            chosen = ()
        chosen += (branch,)
    yield replace(tree, branches=chosen)
