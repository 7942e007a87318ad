"""A passage as the model reads it: the context once (the trunk), its questions as branches.

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
    """One question on a trunk.

    Attributes:
        question_id: the question's id in its data.
        prompt: token ids from the end of the context to where the answer starts.
        answer: token ids of the answer and eos, all supervised; empty where it is to be found.
    """

    question_id: str
    prompt: TokenIds
    answer: TokenIds

    @property
    def inputs(self) -> TokenIds:
        """What the model reads of this branch: all but the last eos, which predicts nothing."""
        return np.concatenate([self.prompt, self.answer[:-1]])

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.answer) - 1, 0)


@dataclass(frozen=True, eq=False, slots=True)
class Tree:
    """A context, or a window of it, with its questions.

    Attributes:
        trunk: token ids of the context segment.
        branches: the questions, each seeing the trunk and itself only.
        passage: index of the passage in its data.
        window: the part of the context in the trunk, as character offsets (start, end).
    """

    trunk: TokenIds
    branches: tuple[Branch, ...]
    passage: int
    window: tuple[int, int]

    def __len__(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))

    @property
    def separate_length(self) -> int:
        """How many tokens the same questions need when each carries its own context."""
        return len(self) + (len(self.branches) - 1) * len(self.trunk)

    @property
    def longest_path(self) -> int:
        """Tokens from the start of the trunk to the end of the longest branch."""
        return len(self.trunk) + max(map(len, self.branches))
