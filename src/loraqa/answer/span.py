"""Exact search for the most probable span of the context.

A span is encoded as answers are in training; its score is ln p(its tokens, eos | prompt). The spans
of a context form a trie of tokens. The log-probability only falls along a path, so a path that is
no more probable than the n-th best answer so far is dropped with everything below it. The result is
that of trying every span, but only a small part of the trie is computed.

Spans that read the same, such as "the Nile" and "Nile", are one answer. `choose` says how answers
are weighed against all others and "no answer".
"""

import math
import string
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loraqa.answer.decode import Prompts, Rules, Written
from loraqa.answer.windows import Searched, reading
from loraqa.garbage import no_garbage
from loraqa.model.session import DecodingSession
from loraqa.model.stop import check_stop
from loraqa.prompt.segments import SegmentTokenizer, all_offsets
from loraqa.prompt.tree import TokenIds
from loraqa.squad.segmentation import pieces

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A span encoded alone has at most this many tokens fewer than the context's tokens that cover it,
# because these may extend beyond its ends.
_SHORTER_ALONE = 8
# Paths below this log-probability are extended only if no better one of their prompt waits, since
# most of them turn out not to be needed. Extending the others together needs fewer steps.
_IMPROBABLE = math.log(0.005)
# Close bounds need nearly all paths that wait. Then a step extends so many of each prompt.
_TOGETHER = 8
# Less than any probability that counts.
_TINY = 1e-30
# Seconds between two reports of how far a search is.
_INTERVAL = 0.5
# Log-odds beyond this are certain, and do not overflow.
_SURE = 100


@dataclass(frozen=True)
class SpanSearch:
    """The spans with the highest probability.

    Attributes:
        most_paths: when so many paths were extended for a question that has an answer, the search
            stops. Then a better answer may be missed, and `Searched.exact` says so.
        slack: how far apart the bounds of a share may be, in a window alone. The search goes on
            after the best answers are found until they are so close.
        at_once: bounds the number of paths that one step extends (at least one per prompt), and
            with it the memory. Answers do not depend on it; bounds may, within `slack`.
    """

    most_paths: float = math.inf
    slack: float = math.inf
    draws: bool = False
    # Several paths of a prompt may wait, but most are much shorter than the longest answer.
    rows: int = 1
    at_once: int = 256

    @property
    def name(self) -> str:
        """See `Strategy`."""
        return "span" if math.isinf(self.most_paths) else f"span:{self.most_paths:.0f}"

    def write(self, prompts: Prompts) -> list[list[Written]]:
        """See `Strategy`."""
        spans = [
            _spans(context, tree.window, prompts.rules)
            for tree, context in zip(prompts.trees, prompts.contexts, strict=True)
        ]
        tries = [Trie.of([span.tokens for span in choices]) for choices in spans]
        branches = [len(tree.branches) for tree in prompts.trees]
        of_prompts = [
            each
            for each, count in zip(zip(prompts.contexts, spans, strict=True), branches, strict=True)
            for _ in range(count)
        ]
        search = _Search(
            _Forest(tries, branches),
            prompts.rules.tokenizer.eos,
            [partial(_read, context, choices) for context, choices in of_prompts],
            prompts.no_answer,
            prompts.answers,
            self.at_once,
            self.most_paths,
            self.slack,
        )
        search.run(prompts.session, prompts.logits, prompts.note)
        return [
            [_written(choices[found.index], found, prompts.rules) for found in answers]
            for (_, choices), answers in zip(of_prompts, search.answers(), strict=True)
        ]


class _Span(NamedTuple):
    """A candidate answer: its tokens without eos, and its (start, end)."""

    tokens: TokenIds
    place: tuple[int, int]


def _read(context: str, spans: Sequence[_Span], index: int) -> str:
    return reading(context[slice(*spans[index].place)])


def _written(span: _Span, found: "_BestSpan", rules: Rules) -> Written:
    tokens = (*span.tokens.tolist(), rules.tokenizer.eos)
    return Written(tokens, found.score, span.place, found.searched)


@no_garbage()
def _spans(context: str, window: tuple[int, int], rules: Rules) -> list[_Span]:
    """Return every text in the window that may be an answer, with its first place."""
    longest = rules.max_answer_tokens - 1
    places: dict[str, tuple[int, int]] = {}
    for start, end in _places(context, window, rules.tokenizer, longest + _SHORTER_ALONE):
        places.setdefault(context[start:end], (start, end))
    encodings = rules.tokenizer.encode([rules.template.answer(text) for text in places])
    return [
        _Span(encoding.ids, place)
        for encoding, place in zip(encodings, places.values(), strict=True)
        if len(encoding.ids) <= longest
    ]


def _places(
    context: str, window: tuple[int, int], tokenizer: SegmentTokenizer, tokens: int
) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of all runs of pieces that at most `tokens` tokens of the window cover.

    Runs of nothing but ASCII punctuation, which normalize to nothing, are no answers.
    """
    text = context[slice(*window)]
    starts, ends = np.reshape(pieces(text), (-1, 2)).T + window[0]
    token_ends = all_offsets(tokenizer.encode([text])[0])[:, 1] + window[0]
    first = np.searchsorted(token_ends, starts, side="right")
    reach = token_ends[np.minimum(first + tokens, len(token_ends)) - 1]
    beyond = np.searchsorted(ends, reach, side="right")
    all_ends = ends.tolist()
    shortest = _next_saying([context[a:b] for a, b in zip(starts, ends, strict=True)])
    for start, first_end, last in zip(starts.tolist(), shortest, beyond.tolist(), strict=True):
        check_stop()
        for end in all_ends[first_end:last]:
            yield start, end


def _next_saying(texts: Sequence[str]) -> list[int]:
    """Return for each piece the index of the first one, from it on, that is not punctuation."""
    saying = [bool(text.strip(string.punctuation)) for text in texts]
    indices = np.where(saying, np.arange(len(texts)), len(texts))
    found: list[int] = np.minimum.accumulate(indices[::-1])[::-1].tolist()
    return found


@dataclass(frozen=True)
class Trie:
    """A trie of token sequences. Nodes are prefixes, numbered breadth first from the root, 0.

    Attributes:
        tokens: (nodes,) the last token of each prefix.
        children: (nodes + 1,) the children of node n are range(children[n], children[n + 1]).
        ending: (nodes,) the index of the first sequence that ends at each node, or -1.
    """

    tokens: Ints
    children: Ints
    ending: Ints

    @classmethod
    def of(cls, sequences: Sequence[TokenIds | Sequence[int]]) -> "Trie":
        """Build the trie of some sequences."""
        if not sequences:
            return cls(np.array([-1]), np.array([1, 1]), np.array([-1]))
        lengths = np.array([len(sequence) for sequence in sequences])
        table = np.full((len(sequences), max(lengths.max(), 1)), -1)
        table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate(sequences)
        order = np.lexsort(table.T[::-1])
        table, lengths = table[order], lengths[order]
        # A prefix is new if it differs from the previous sequence's prefix.
        new = np.ones(table.shape, dtype=bool)
        new[1:] = np.logical_or.accumulate(table[1:] != table[:-1], axis=1)
        new &= table >= 0
        numbers = new.T.cumsum().reshape(new.T.shape).T
        parents = np.hstack([np.zeros_like(numbers[:, :1]), numbers[:, :-1]]).T[new.T]
        nodes = len(parents) + 1
        last = np.where(lengths > 0, numbers[np.arange(len(numbers)), lengths - 1], 0)
        ending = np.full(nodes, -1)
        # The sort is stable and the assignment reversed, so the first of equal sequences wins.
        ending[last[::-1]] = order[::-1]
        return cls(
            tokens=np.concatenate([[-1], table.T[new.T]]),
            children=np.searchsorted(parents, np.arange(nodes + 1)) + 1,
            ending=ending,
        )


class _Forest:
    """The tries of several trees with one numbering of nodes.

    Attributes:
        tokens: (nodes,) as in `Trie`.
        ending: (nodes,) as in `Trie`.
        first, last: (nodes,) the children of node n are range(first[n], last[n]).
        roots: (prompts,) the root of each prompt's trie.
    """

    def __init__(self, tries: Sequence[Trie], branches: Sequence[int]) -> None:
        sizes = [len(trie.tokens) for trie in tries]
        starts = np.cumsum([0, *sizes[:-1]])
        self.tokens = np.concatenate([trie.tokens for trie in tries])
        self.ending = np.concatenate([trie.ending for trie in tries])
        pairs = list(zip(tries, starts, strict=True))
        self.first = np.concatenate([trie.children[:-1] + start for trie, start in pairs])
        self.last = np.concatenate([trie.children[1:] + start for trie, start in pairs])
        self.roots = np.repeat(starts, branches)


@dataclass(frozen=True)
class _Frontier:
    """Paths that can be extended by a token.

    Attributes:
        session: the computation, up to the last token but one of each path.
        rows: (n,) the session's row of each path.
        prompts: (n,) the prompt of each path.
        nodes: (n,) the last node of each path.
        scores: (n,) the log-probability of each path.
    """

    session: DecodingSession
    rows: Ints
    prompts: Ints
    nodes: Ints
    scores: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, chosen: NDArray[np.bool_]) -> "_Frontier":
        """Return the chosen paths."""
        return _Frontier(
            self.session,
            self.rows[chosen],
            self.prompts[chosen],
            self.nodes[chosen],
            self.scores[chosen],
        )

    def most_probable(self, count: int, each: float, least: float) -> NDArray[np.bool_]:
        """Return a mask of each prompt's best path, and of the most probable ones of the others.

        Args:
            count: how many paths to choose, at least one per prompt.
            each: how many to choose for a prompt, at most.
            least: the others exceed this log-probability.
        """
        order = np.lexsort((-self.scores, self.prompts))
        _, start, counts = np.unique(self.prompts[order], return_index=True, return_counts=True)
        rank = np.arange(len(self)) - np.repeat(start, counts)
        others = order[(rank > 0) & (rank < each) & (self.scores[order] > least)]
        others = others[np.argsort(-self.scores[others], kind="stable")]
        chosen = np.zeros(len(self), dtype=bool)
        chosen[order[start]] = True
        chosen[others[: max(0, count - len(start))]] = True
        return chosen


@dataclass(frozen=True)
class _BestSpan:
    """An answer to a prompt: its most probable span's index and log-probability."""

    index: int
    score: float
    searched: Searched


@dataclass
class _Reading:
    """The spans met so far that read the same: the best one's index and score.

    Attributes:
        probability: the sum of the probabilities of all.
    """

    index: int
    score: float
    probability: float


class _Search:
    """Branch and bound through a forest, for all prompts at once.

    Args:
        forest: the tries of all spans.
        eos: the token that ends a span.
        read: for each prompt, how the span of an index reads.
        no_answer: for each prompt, the log-odds of "no answer".
        count: how many answers to find for each prompt.
        at_once: how many paths one step extends, at least one per prompt.
        most_paths: when so many paths were extended for a prompt that has an answer, the rest is
            dropped.
        slack: how far apart the bounds of a share may be.
    """

    def __init__(
        self,
        forest: _Forest,
        eos: int,
        read: Sequence[Callable[[int], str]],
        no_answer: Sequence[float],
        count: int,
        at_once: int,
        most_paths: float = math.inf,
        slack: float = math.inf,
    ) -> None:
        prompts = len(forest.roots)
        self._forest, self._eos, self._read = forest, eos, read
        self._count, self._at_once = count, at_once
        self._most_paths, self._slack = most_paths, slack
        self._together = (math.inf, _IMPROBABLE) if math.isinf(slack) else (_TOGETHER, -math.inf)
        self._met: list[dict[str, _Reading]] = [{} for _ in range(prompts)]
        # (prompts,) log-probability that a path must exceed to matter.
        self._worst = np.full(prompts, -np.inf)
        # (prompts,) probability of all spans met and "no answer", and of all dropped paths; both
        # among the answers, where "no answer" has its odds.
        self._known = np.exp(np.clip(no_answer, -_SURE, _SURE))
        self._dropped = np.zeros(prompts)
        self._paths, self._exact = np.zeros(prompts, dtype=int), np.ones(prompts, dtype=bool)
        self._answered = np.zeros(prompts, dtype=bool)

    def run(
        self,
        session: DecodingSession,
        logits: Tensor,
        note: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Search from the first logits of each prompt.

        Now and then tell how many prompts are answered, of which the searched parts count.
        """
        prompts = np.arange(len(self._met))
        start = _Frontier(session, prompts, prompts, self._forest.roots, np.zeros(len(prompts)))
        # Depth first: complete spans found early bound the paths that wait higher up.
        waiting = [self._look(start, session, logits)]
        told, first = time.monotonic(), self._probability(waiting)
        while waiting:
            if time.monotonic() - told > _INTERVAL:
                left = self._probability(waiting) / np.maximum(first, _TINY)
                note(int((1 - left).sum()))
                told = time.monotonic()
            frontier = self._worthwhile(waiting.pop())
            if not len(frontier):
                continue
            now = frontier.most_probable(self._at_once, *self._together)
            waiting += [frontier.only(~now), self._step(frontier.only(now), logits.device)]

    def _probability(self, waiting: Sequence[_Frontier]) -> Floats:
        """Return (prompts,) the probability of the paths that may lead to a better answer."""
        found = np.zeros(len(self._met))
        for paths in waiting:
            better = paths.scores > self._worst[paths.prompts]
            np.add.at(found, paths.prompts[better], np.exp(paths.scores[better]))
        return found

    def answers(self) -> list[list[_BestSpan]]:
        """Return the best answers to each prompt, best first."""
        return [
            [
                _BestSpan(best.index, best.score, self._searched(prompt))
                for best in self._best(prompt)
            ]
            for prompt in range(len(self._met))
        ]

    def _best(self, prompt: int) -> list[_Reading]:
        return nlargest(self._count, self._met[prompt].values(), key=lambda met: met.score)

    def _searched(self, prompt: int) -> Searched:
        return Searched(
            {text: met.probability for text, met in self._met[prompt].items()},
            float(self._dropped[prompt]),
            int(self._paths[prompt]),
            bool(self._exact[prompt]),
        )

    def _worthwhile(self, paths: _Frontier) -> _Frontier:
        """Drop the paths that are not needed, or no longer allowed."""
        allowed = self._paths[paths.prompts] < self._most_paths
        # Every prompt gets an answer.
        allowed |= ~self._answered[paths.prompts]
        better = paths.scores > self._worst[paths.prompts]
        self._exact[paths.prompts[better & ~allowed]] = False
        needed = better if math.isinf(self._slack) else better | self._weighty(paths, better)
        kept = allowed & needed
        np.add.at(self._dropped, paths.prompts[~kept], np.exp(paths.scores[~kept]))
        return paths.only(kept)

    def _weighty(self, paths: _Frontier, better: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which paths would widen the bounds beyond `slack` if they were dropped.

        Of those that are not better, the least probable are dropped first.
        """
        probabilities = np.where(better, 0.0, np.exp(paths.scores))
        order = np.lexsort((probabilities, paths.prompts))
        sums = probabilities[order].cumsum()
        prompts, first = np.unique(paths.prompts[order], return_index=True)
        before = np.zeros(len(self._met))
        before[prompts] = sums[first] - probabilities[order[first]]
        dropped = np.empty(len(paths))
        dropped[order] = sums - before[paths.prompts[order]]
        room = self._slack * self._known - self._dropped
        weighty: NDArray[np.bool_] = dropped > room[paths.prompts]
        return weighty

    def _step(self, paths: _Frontier, device: torch.device) -> _Frontier:
        np.add.at(self._paths, paths.prompts, 1)
        session = paths.session.fork(torch.from_numpy(paths.rows).to(device))
        tokens = torch.from_numpy(self._forest.tokens[paths.nodes])
        return self._look(paths, session, session.advance(tokens.to(device)))

    def _look(self, paths: _Frontier, session: DecodingSession, logits: Tensor) -> _Frontier:
        """Score the end of each path at its node, and return all its extensions."""
        forest = self._forest
        rows = np.arange(len(paths))
        counts = forest.last[paths.nodes] - forest.first[paths.nodes]
        parents = np.repeat(rows, counts)
        nth = np.arange(len(parents)) - np.repeat(counts.cumsum() - counts, counts)
        nodes = forest.first[paths.nodes][parents] + nth
        scores = _log_probabilities(
            logits,
            np.concatenate([rows, parents]),
            np.concatenate([np.full(len(paths), self._eos), forest.tokens[nodes]]),
        )
        self._end(paths, scores[: len(paths)])
        ahead = paths.scores[parents] + scores[len(paths) :]
        return _Frontier(session, parents, paths.prompts[parents], nodes, ahead)

    def _end(self, paths: _Frontier, of_eos: Floats) -> None:
        """Meet the spans that end at the paths' nodes."""
        indices = self._forest.ending[paths.nodes]
        ended = indices >= 0
        ends = zip(
            paths.prompts[ended].tolist(),
            indices[ended].tolist(),
            (paths.scores + of_eos)[ended].tolist(),
            strict=True,
        )
        for prompt, index, score in ends:
            self._meet(prompt, index, score)
        self._answered[paths.prompts[ended]] = True

    def _meet(self, prompt: int, index: int, score: float) -> None:
        text = self._read[prompt](index)
        met = self._met[prompt].setdefault(text, _Reading(index, -math.inf, 0.0))
        met.probability += math.exp(score)
        self._known[prompt] += math.exp(score)
        if score > met.score:
            met.index, met.score = index, score
        if score > self._worst[prompt] and len(self._met[prompt]) >= self._count:
            self._worst[prompt] = self._best(prompt)[-1].score


def _log_probabilities(logits: Tensor, rows: Ints, tokens: Ints) -> Floats:
    """Return (n,) ln p(tokens[i]) by the logits of row rows[i]."""
    row, token = (torch.from_numpy(index).to(logits.device) for index in (rows, tokens))
    logits = logits.float()
    chosen = logits[row, token] - logits.logsumexp(dim=-1)[row]
    return chosen.cpu().double().numpy()
