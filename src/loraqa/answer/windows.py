"""Choose the answers to a question among those of its windows, and weigh them against all others.

A window w gives each text a probability p_w(a), and "no answer" p_w(none). A model that has learned
to say "no answer" gives a window without the answer a high p_w(none), so the odds

    o_w(a) = p_w(a) / p_w(none)

can be compared between windows. Before they are read, the words of the question say how probable it
is that window w is the one that holds the answer: q_w, which `relevant` computes. If at most one
window holds it, Bayes' rule gives an answer the share

    sum of q_w o_w(a) over w / (1 + sum of q_w o_w(a') over w and all spans a')

of the probability, and the answer with the highest q_w o_w(a) is chosen. With one window the share
is p(a) / (p(none) + sum of p(a')). Of a model that has not learned to say "no answer", p_w(none)
means nothing. Then p_w(a) takes the place of o_w(a), and the sum of q_w p_w(none) that of 1.

Spans that read the same, in any window, are one answer. What lies below the paths that a search
dropped is not known, but it is no more probable than they are, so a share has bounds.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np

from loraqa.answer.answered import Answered
from loraqa.squad import normalize_answer

T = TypeVar("T")


class Found(NamedTuple):
    """An answer that was read from a window.

    Attributes:
        text: the answer.
        log_probability: ln p of its tokens and its end among all answers but "no answer".
        tokens: how many tokens it has.
        start, end: where it stands in the context; None if it does not.
    """

    text: str
    log_probability: float
    tokens: int
    start: int | None
    end: int | None


class Searched(NamedTuple):
    """What the span search of a prompt met, in probabilities among all answers but "no answer".

    Attributes:
        met: the sum of the probabilities of the spans that read the same, by their reading.
        dropped: the probability of all that was not computed, at most.
        paths: how many paths were extended by a token.
        exact: false if the search stopped before it was sure of the best answers.
    """

    met: Mapping[str, float]
    dropped: float
    paths: int
    exact: bool


@dataclass(frozen=True)
class Window:
    """What was read from a window for a question.

    Attributes:
        no_answer: ln(p(none) / (1 - p(none))), the log-odds of "no answer".
        found: the answers: draws in their order, or the best first; none where there is no span.
        searched: what the span search met; None for other strategies.
        log_prior: ln q_w, how probable it was before reading that this window holds the answer.
    """

    no_answer: float
    found: tuple[Found, ...]
    searched: Searched | None = None
    log_prior: float = 0.0

    @property
    def log_no_answer(self) -> float:
        """ln p(none)."""
        return -float(np.logaddexp(0, -self.no_answer))

    @property
    def log_answer(self) -> float:
        """ln(1 - p(none))."""
        return -float(np.logaddexp(0, self.no_answer))

    def to_json(self) -> list[Any]:
        """Return plain JSON values."""
        return [self.no_answer, self.found, self.searched, self.log_prior]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "Window":
        """Read what `to_json` returned."""
        no_answer, found, searched, log_prior = values
        return cls(
            no_answer,
            tuple(Found(*each) for each in found),
            Searched(*searched) if searched else None,
            log_prior,
        )

    def log_weight(self, learned_no_answer: bool) -> float:
        """Return ln of what turns a probability among answers into q_w o_w(a), or q_w p_w(a)."""
        return self.log_prior + (-self.no_answer if learned_no_answer else self.log_answer)


@dataclass(frozen=True)
class Chosen:
    """The answers to a question.

    Attributes:
        answers: at most as many as were wanted, best first; of draws, one for each draw; none where
            there is no span.
        no_answer: "no answer".
    """

    answers: list[Answered]
    no_answer: Answered

    def above(self, threshold: float | None) -> list[Answered]:
        """Return the answers, after "no answer" if its probability is above `threshold`.

        "No answer" is returned, too, where there is no other; a threshold of None is never passed.
        """
        exceeded = threshold is not None and self.no_answer.no_answer_probability > threshold
        return [self.no_answer, *self.answers] if exceeded or not self.answers else self.answers


def choose(
    question_id: str, windows: Sequence[Window], count: int, *, draws: bool, learned_no_answer: bool
) -> Chosen:
    """Choose at most `count` answers among those of the windows.

    Args:
        question_id: the id of the question.
        windows: the windows of the context, one or more.
        count: how many answers are wanted; of draws each window has so many.
        draws: whether the answers were drawn at random.
        learned_no_answer: whether the model has learned to say "no answer". Then odds are compared.
    """
    best = _best(windows, draws, learned_no_answer)[:count]
    odds = [f.log_probability + w.log_weight(True) for w in windows for f in w.found]
    none = _sigmoid(-max(odds, default=-math.inf))
    answers = [_answered(question_id, candidate, none) for candidate in best]
    surest = min(windows, key=lambda window: window.no_answer)
    no_answer = _no_answer(question_id, surest, none)
    if shares := _Shares.of(windows, learned_no_answer):
        answers, no_answer = [*map(shares.add_to, answers)], shares.add_to(no_answer)
    return Chosen(answers, no_answer)


def reading(text: str) -> str:
    """Return the text as SQuAD normalizes it, by which answers read the same; "" for no answer."""
    return normalize_answer(text) or text


def of_each_reading(answers: Iterable[T], text: Callable[[T], str]) -> list[T]:
    """Keep the first of the answers whose texts read the same."""
    first: dict[str, T] = {}
    for answer in answers:
        first.setdefault(reading(text(answer)), answer)
    return list(first.values())


_Candidate = tuple[Found, Window]


def _best(windows: Sequence[Window], draws: bool, learned_no_answer: bool) -> list[_Candidate]:
    """Return the best candidate of each draw; or of each reading, best first."""

    def rank(candidate: _Candidate) -> tuple[bool, float]:
        found, window = candidate
        # A model may write an empty text although "no answer" is none of its choices.
        return found.text != "", found.log_probability + window.log_weight(learned_no_answer)

    candidates = [[(found, window) for found in window.found] for window in windows]
    if len(windows) == 1:
        return candidates[0]
    if draws:
        return [max(of_draw, key=rank) for of_draw in zip(*candidates, strict=True)]
    return of_each_reading(sorted(chain(*candidates), key=rank, reverse=True), _text)


def _text(candidate: _Candidate) -> str:
    return candidate[0].text


def _answered(question_id: str, candidate: _Candidate, none: float) -> Answered:
    found, window = candidate
    total = found.log_probability + window.log_answer
    return Answered(
        question_id=question_id,
        text=found.text,
        log_probability=total,
        mean_log_probability=total / found.tokens,
        start=found.start,
        end=found.end,
        no_answer_probability=none,
        tokens=found.tokens,
    )


def _no_answer(question_id: str, window: Window, none: float) -> Answered:
    # It is one token, the end.
    return Answered(
        question_id=question_id,
        text="",
        log_probability=window.log_no_answer,
        mean_log_probability=window.log_no_answer,
        start=None,
        end=None,
        no_answer_probability=none,
    )


@dataclass(frozen=True)
class _Shares:
    """What the searches of all windows met, weighed against each other.

    Attributes:
        met: the weights of the spans that read the same, by their reading; "" is "no answer".
        dropped: the weight of all that was not computed, at most.
        paths, exact: as in `Searched`.
    """

    met: Mapping[str, float]
    dropped: float
    paths: int
    exact: bool

    @classmethod
    def of(cls, windows: Sequence[Window], learned_no_answer: bool) -> "_Shares | None":
        """Weigh the windows; return None if they were not searched."""
        # A window without any span was not searched.
        searched = [(window, window.searched) for window in windows if window.searched]
        if not searched:
            return None
        none = (
            0.0
            if learned_no_answer
            else float(np.logaddexp.reduce([w.log_prior + w.log_no_answer for w in windows]))
        )
        logs = [window.log_weight(learned_no_answer) for window, _ in searched]
        # The largest weight becomes 1, so that none overflows.
        largest = max(none, *logs)
        weights = [math.exp(log - largest) for log in logs]
        searches = [search for _, search in searched]
        met = Counter({"": math.exp(none - largest)})
        for search, weight in zip(searches, weights, strict=True):
            met.update({text: weight * mass for text, mass in search.met.items()})
        return cls(
            met,
            sum(search.dropped * weight for search, weight in zip(searches, weights, strict=True)),
            sum(search.paths for search in searches),
            all(search.exact for search in searches),
        )

    def add_to(self, answer: Answered) -> Answered:
        """Return the answer with the bounds of its share."""
        own, known = self.met.get(reading(answer.text), 0.0), sum(self.met.values())
        total = known + self.dropped
        # What was dropped may read like an answer, but it is never "no answer".
        at_most = (own + self.dropped) / total if answer.text else own / known
        return replace(
            answer,
            probability_at_least=own / total,
            probability_at_most=at_most,
            paths=self.paths,
            exact=self.exact,
        )


def _sigmoid(x: float) -> float:
    return math.exp(-float(np.logaddexp(0, -x)))
