"""A passage as a tree: the context is the trunk, and each question is a branch.

                          ┌─ " Question: q1 Answer:" " a1" eos
    "Context: c" (trunk) ─┼─ " Question: q2 Answer:" " a2" eos
                          └─ " Question: q3 Answer:" " a3" eos

Attention is causal, so the trunk does not depend on what follows it and is computed once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """A question on a trunk.

    Attributes:
        question_id: the question's id in the data set.
        prompt: token ids between the context and the answer.
        answer: token ids of the answer and eos, all supervised; empty if the model must answer.
        log_prior: ln of the probability that of all windows of a long text the trunk is the one
            with the answer, before it is read.
    """

    question_id: str
    prompt: TokenIds
    answer: TokenIds
    log_prior: float = 0.0

    @property
    def inputs(self) -> TokenIds:
        """The model's input for this branch: all tokens except eos, which predicts nothing."""
        return np.concatenate([self.prompt, self.answer[:-1]])

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.answer) - 1, 0)


@dataclass(frozen=True, eq=False, slots=True)
class Tree:
    """A context, or a window of it, with its questions.

    Attributes:
        trunk: token ids of the context segment.
        branches: the questions; each attends only to the trunk and to itself.
        passage: index of the passage in the data set.
        window: character offsets (start, end) of the trunk's part of the context.
    """

    trunk: TokenIds
    branches: tuple[Branch, ...]
    passage: int
    window: tuple[int, int]

    def __len__(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))

    @property
    def separate_length(self) -> int:
        """Number of tokens if every question had its own copy of the context."""
        return len(self) + (len(self.branches) - 1) * len(self.trunk)

    @property
    def longest_path(self) -> int:
        """Number of tokens from the start of the trunk to the end of the longest branch."""
        return len(self.trunk) + max(map(len, self.branches))
