"""Writing answers token by token, for all prompts of a batch at once.

A prompt is a path of a tree from the start of its trunk to the end of a branch. All answers to it
go on from the same keys and values, and an answer that has ended leaves the batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from loraqa.answer.filters import draw
from loraqa.model.session import DecodingSession
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Branch, Tree

Filter = Callable[..., Tensor]
"""A function from logits and a number to logits."""


@dataclass(frozen=True)
class Rules:
    """What an answer may be.

    Attributes:
        tokenizer, template: those of the prompts.
        max_answer_tokens: the longest answer, the token that ends it counted in.
        no_answer: whether "no answer" is one (SQuAD v2.0); only the search over spans must be
            told, as the other strategies write what the model says.
    """

    tokenizer: SegmentTokenizer
    template: Template
    max_answer_tokens: int
    no_answer: bool = False

    @cached_property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer: eos, and all that hold a line break."""
        return frozenset([self.tokenizer.eos, *self.tokenizer.line_breaks])

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, without the one that ends it."""
        return self.tokenizer.decode([token for token in tokens if token not in self.stops])

    def stops_on(self, device: torch.device) -> Tensor:
        """The same as a tensor."""
        return torch.tensor(sorted(self.stops), device=device)


@dataclass(frozen=True)
class Prompts:
    """A batch of N prompts, computed up to where their answers start.

    Attributes:
        trees: the prompts, branch by branch.
        contexts: the whole context of each tree.
        session: the computation, with one row a prompt; an answer uses it up.
        logits: (N, vocabulary) of the first token of each answer.
        rules: what an answer may be.
        samples: how many answers to draw for each prompt.
        seed: of the draws.
    """

    trees: Sequence[Tree]
    contexts: Sequence[str]
    session: DecodingSession
    logits: Tensor
    rules: Rules
    samples: int
    seed: int

    def rows(self) -> Iterator[tuple[Tree, Branch, str]]:
        """Each prompt's tree, branch and context."""
        for tree, context in zip(self.trees, self.contexts, strict=True):
            for branch in tree.branches:
                yield tree, branch, context


@dataclass(frozen=True, slots=True)
class Written:
    """An answer as the model wrote it.

    Attributes:
        tokens: its ids; the last one ends it, if it did not run into `max_answer_tokens`.
        log_probability: the sum of ln p(token | prompt, tokens before it) over all of them, the
            last included, in the model's own distribution, whatever the strategy made of it.
        place: where in the context it was copied from (start, end), if it was.
    """

    tokens: tuple[int, ...]
    log_probability: float
    place: tuple[int, int] | None = None


class Strategy(Protocol):
    """A way to choose the tokens of answers."""

    @property
    def name(self) -> str:
        """What `parse_strategy` makes it from."""
        ...

    @property
    def draws(self) -> bool:
        """Whether a question can have several answers."""
        ...

    @property
    def rows(self) -> int:
        """How many rows of the computation an answer takes while it is written."""
        ...

    def write(self, prompts: Prompts) -> list[list[Written]]:
        """The answers to each prompt: `samples` of them, or one where nothing is drawn."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The most probable token at every step."""

    name: str = "greedy"
    draws: bool = False
    rows: int = 1

    def write(self, prompts: Prompts) -> list[list[Written]]:
        """See `Strategy`."""
        written = _write(prompts, lambda logits, _rows, _step: logits.argmax(dim=-1))
        return [[answer] for answer in written]


@dataclass(frozen=True)
class Sampling:
    """Tokens drawn from the model's distribution, as `filters` leave it.

    The filters are functions of `filters.py`, each with its number, and follow one another. What
    is drawn depends on the seed, the question's id and the number of the sample, not on what is
    drawn beside it (but for rounding).
    """

    name: str
    filters: tuple[tuple[Filter, float], ...]
    draws: bool = True
    rows: int = 1

    def write(self, prompts: Prompts) -> list[list[Written]]:
        """See `Strategy`."""
        samples, device = prompts.samples, prompts.logits.device
        shape = samples, prompts.rules.max_answer_tokens
        uniforms = np.concatenate(
            [_uniforms(prompts.seed, branch.question_id, shape) for _, branch, _ in prompts.rows()]
        )
        chances = torch.from_numpy(uniforms).to(device)

        def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
            for apply, number in self.filters:
                logits = apply(logits, number)
            return draw(logits, chances[rows, step])

        written = _write(prompts, choose, copies=samples)
        return [written[start : start + samples] for start in range(0, len(written), samples)]


def _uniforms(seed: int, question: str, shape: tuple[int, int]) -> np.ndarray:
    """Numbers in [0, 1), (samples, steps), of which one sample's do not depend on how many."""
    digest = hashlib.sha256(f"{seed} {question}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    return generator.random(shape, dtype=np.float32)


def _write(
    prompts: Prompts, choose: Callable[[Tensor, Tensor, int], Tensor], copies: int = 1
) -> list[Written]:
    """Write `copies` answers to each prompt, those to one prompt together.

    `choose` gives the next tokens (n,) from logits (n, vocabulary), the numbers (n,) of the answers
    still in progress, and the step.
    """
    session, limit = prompts.session, prompts.rules.max_answer_tokens
    device = prompts.logits.device
    stops = prompts.rules.stops_on(device)
    logits = prompts.logits
    if copies > 1:
        rows = torch.arange(len(logits), device=device).repeat_interleave(copies)
        session.select(rows)
        logits = logits[rows]
    rows = torch.arange(len(logits), device=device)
    tokens = torch.full((len(rows), limit), -1, device=device)
    totals = torch.zeros(len(rows), device=device)
    for step in range(limit):
        logits = logits.float()
        chosen = choose(logits, rows, step)
        tokens[rows, step] = chosen
        totals[rows] += logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=-1)
        going_on = torch.isin(chosen, stops, invert=True).nonzero()[:, 0]
        if step + 1 == limit or not len(going_on):
            break
        if len(going_on) < len(rows):
            session.select(going_on)
            rows, chosen = rows[going_on], chosen[going_on]
        logits = session.advance(chosen)
    return collect(tokens, totals)


def collect(tokens: Tensor, log_probabilities: Tensor) -> list[Written]:
    """Answers from tokens (n, longest), padded with -1, and their log-probabilities (n,)."""
    return [
        Written(tuple(token for token in row if token >= 0), total)
        for row, total in zip(tokens.tolist(), log_probabilities.tolist(), strict=True)
    ]
