"""Decoding: write answers token by token, for all prompts of a batch at once.

A prompt is the path of a tree from the start of the trunk to the end of a branch. All answers to a
prompt share its keys and values. A finished answer leaves the batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from loraqa.answer.filters import draw
from loraqa.answer.windows import Searched
from loraqa.model.session import DecodingSession
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Branch, Tree

Filter = Callable[..., Tensor]
"""A function from logits and a parameter to logits."""


@dataclass(frozen=True)
class Rules:
    """How answers are tokenized and where they end.

    Attributes:
        tokenizer: the tokenizer of the prompts.
        template: the template of the prompts.
        max_answer_tokens: maximum tokens of an answer, including the end token.
    """

    tokenizer: SegmentTokenizer
    template: Template
    max_answer_tokens: int

    @cached_property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer: eos and all tokens with a line break.

        A line break before the first word ends nothing (see `Ends`).
        """
        return frozenset([self.tokenizer.eos, *self.tokenizer.line_breaks])

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer's tokens, without the end token and blanks around it."""
        return self.tokenizer.decode([token for token in tokens if token not in self.stops])


class Ends:
    """Tells which tokens end an answer: eos always, a line break only after the first word.

    Models that were tuned for chats often begin with a line break. A token that holds a line break
    and more than blanks ends an answer anywhere.

    Args:
        rules: the rules of the answers.
        logits: any logits (..., vocabulary) of the model.
    """

    def __init__(self, rules: Rules, logits: Tensor) -> None:
        blanks = frozenset(rules.tokenizer.blanks) - {rules.tokenizer.eos}

        def mask(ids: frozenset[int]) -> Tensor:
            chosen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            # Some tokenizers have more ids than the model has logits.
            chosen[[i for i in sorted(ids) if i < len(chosen)]] = True
            return chosen

        self._blank = mask(blanks)
        self._always = mask(rules.stops - blanks)
        self._later = mask(rules.stops & blanks)

    def begun(self, answers: Tensor) -> Tensor:
        """Return (...,) whether answers (..., tokens), padded with -1, have a word."""
        return ((answers >= 0) & ~self._blank[answers]).any(dim=-1)

    def at(self, tokens: Tensor, begun: Tensor) -> Tensor:
        """Return (...,) whether tokens (...,) end answers, which have `begun` (...,) or not."""
        return self._always[tokens] | (begun & self._later[tokens])

    def after(self, begun: Tensor) -> Tensor:
        """Return (..., vocabulary) which tokens end answers that have `begun` (...,) or not."""
        return self._always | (begun[..., None] & self._later)


@dataclass(frozen=True)
class Prompts:
    """A batch of N prompts whose keys and values are computed.

    Attributes:
        trees: the trees; each of their branches is a prompt.
        contexts: the whole context of each tree.
        session: the computation, one row per prompt; a strategy can use it only once.
        logits: (N, vocabulary) logits of the first token of each answer; that of eos is -inf,
            because it would be "no answer".
        no_answer: the log-odds of "no answer" to each prompt.
        rules: how answers are tokenized and where they end.
        answers: how many answers to each prompt are wanted.
        seed: random seed.
        note: a strategy may tell it how many prompts are answered so far.
    """

    trees: Sequence[Tree]
    contexts: Sequence[str]
    session: DecodingSession
    logits: Tensor
    no_answer: Sequence[float]
    rules: Rules
    answers: int
    seed: int
    note: Callable[[int], None] = lambda _: None

    def rows(self) -> Iterator[tuple[Tree, Branch, str]]:
        """Yield the tree, branch and context of each prompt."""
        for tree, context in zip(self.trees, self.contexts, strict=True):
            for branch in tree.branches:
                yield tree, branch, context


def split_no_answer(logits: Tensor, eos: int) -> tuple[Tensor, list[float]]:
    """Return logits (N, vocabulary) without eos, and the log-odds of eos against all others."""
    answers = logits.index_fill(1, torch.tensor([eos], device=logits.device), -torch.inf)
    return answers, (logits[:, eos].double() - answers.double().logsumexp(dim=-1)).tolist()


@dataclass(frozen=True, slots=True)
class Written:
    """A decoded answer.

    Attributes:
        tokens: token ids, including the end token unless `max_answer_tokens` was reached.
        log_probability: sum of ln p(token | prompt, tokens before it) over all tokens, including
            the end token, in the model's own distribution but for "no answer", before any filter.
        place: (start, end) in the context if the answer was copied from it, else None.
        searched: what the span search of the prompt met; None for other strategies.
    """

    tokens: tuple[int, ...]
    log_probability: float
    place: tuple[int, int] | None = None
    searched: Searched | None = None


class Strategy(Protocol):
    """A way to choose the tokens of answers. Its `repr` says all that its answers depend on."""

    @property
    def name(self) -> str:
        """The name that `parse_strategy` accepts."""
        ...

    @property
    def draws(self) -> bool:
        """Whether the strategy is random, so that a question can have several answers."""
        ...

    @property
    def rows(self) -> int:
        """The number of rows of the session that an answer needs while it is decoded."""
        ...

    def write(self, prompts: Prompts) -> list[list[Written]]:
        """Return at most `prompts.answers` answers to each prompt: all draws, or the best first."""
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
    """Tokens drawn from the model's distribution after `filters`.

    The filters are functions of `filters.py` with their parameters, applied in order. A sample
    depends only on the seed, the question's id and its number, not on the rest of the batch (except
    for rounding).
    """

    name: str
    # A function's `repr` has its address, and the name says which filters there are.
    filters: tuple[tuple[Filter, float], ...] = field(repr=False)
    draws: bool = True
    rows: int = 1

    def write(self, prompts: Prompts) -> list[list[Written]]:
        """See `Strategy`."""
        samples, device = prompts.answers, prompts.logits.device
        shape = samples, prompts.rules.max_answer_tokens
        uniforms = np.concatenate(
            [_uniforms(prompts.seed, branch.question_id, shape) for _, branch, _ in prompts.rows()]
        )
        chances = torch.from_numpy(uniforms).to(device)

        def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
            for apply, parameter in self.filters:
                logits = apply(logits, parameter)
            return draw(logits, chances[rows, step])

        written = _write(prompts, choose, copies=samples)
        return [written[start : start + samples] for start in range(0, len(written), samples)]


def _uniforms(seed: int, question: str, shape: tuple[int, int]) -> np.ndarray:
    """Return (samples, steps) numbers in [0, 1); more samples do not change the first ones."""
    digest = hashlib.sha256(f"{seed} {question}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    return generator.random(shape, dtype=np.float32)


def _write(
    prompts: Prompts, choose: Callable[[Tensor, Tensor, int], Tensor], copies: int = 1
) -> list[Written]:
    """Write `copies` answers to each prompt; answers to the same prompt are adjacent.

    `choose` returns the next tokens (n,) given the logits (n, vocabulary) of the unfinished
    answers, the numbers (n,) of these answers, and the step.
    """
    session, limit = prompts.session, prompts.rules.max_answer_tokens
    device = prompts.logits.device
    logits = prompts.logits
    ends = Ends(prompts.rules, logits)
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
        ended = ends.at(chosen, ends.begun(tokens[rows, :step]))
        tokens[rows, step] = chosen
        totals[rows] += logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=-1)
        going_on = (~ended).nonzero()[:, 0]
        if step + 1 == limit or not len(going_on):
            break
        if len(going_on) < len(rows):
            session.select(going_on)
            rows, chosen = rows[going_on], chosen[going_on]
        logits = session.advance(chosen)
    return collect(tokens, totals)


def collect(tokens: Tensor, log_probabilities: Tensor) -> list[Written]:
    """Return answers from tokens (n, longest), padded with -1, and log-probabilities (n,)."""
    return [
        Written(tuple(token for token in row if token >= 0), total)
        for row, total in zip(tokens.tolist(), log_probabilities.tolist(), strict=True)
    ]
