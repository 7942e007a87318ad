"""Decoding strategies side by side: how good their answers are, and how much they vary."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from statistics import fmean

from loraqa.answer.decode import Strategy
from loraqa.answer.reader import Answered, Reader
from loraqa.squad import Passage, Version, normalize_answer, score_question

Progress = Callable[[int, int, str], None]
"""Called with the number of prompts answered so far by all strategies, of all, and the present
strategy's place and name."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A strategy's answers to a data set.

    Attributes:
        strategy: its name.
        questions: how many were answered.
        samples: answers to each question; 1 where nothing is drawn.
        exact_match, f1: of one answer, in percent: the mean over all of them.
        oracle_f1: of the best answer to each question, in percent.
        found: share of the answers that stand in the context, of those that are not empty; None
            where all are.
        distinct: different answers to a question, after normalization.
        entropy: of the distribution of a question's answers, after normalization, in nats.
        seconds: that answering took.
    """

    strategy: str
    questions: int
    samples: int
    exact_match: float
    f1: float
    oracle_f1: float
    found: float | None
    distinct: float
    entropy: float
    seconds: float


def compare(
    reader: Reader,
    passages: Sequence[Passage],
    version: Version,
    strategies: Sequence[Strategy],
    *,
    samples: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Answer every question by each strategy, `samples` times where it draws.

    Raises:
        InputError: a question of v1.1 has no answer, or one leaves no room for a context.
    """
    compared = []
    for index, strategy in enumerate(strategies):
        show = partial(_show, progress, strategies, index) if progress else None
        start = time.perf_counter()
        answers = reader.read(passages, strategy, samples=samples, seed=seed, progress=show)
        seconds = time.perf_counter() - start
        compared.append(summarize(strategy.name, passages, version, answers, seconds))
    return compared


def _show(
    progress: Progress, strategies: Sequence[Strategy], index: int, done: int, total: int
) -> None:
    """Count all strategies together: each has the same prompts to answer."""
    count = len(strategies)
    part = f"strategy {index + 1} of {count}: {strategies[index].name}"
    progress(index * total + done, count * total, part)


def summarize(
    strategy: str,
    passages: Sequence[Passage],
    version: Version,
    answers: Sequence[Sequence[Answered]],
    seconds: float,
) -> Comparison:
    """What the answers to each question (in the order of the passages) amount to."""
    questions = [question for passage in passages for question in passage.questions]
    pairs = list(zip(questions, answers, strict=True))
    scores = [[score_question(a.text, q, version) for a in given] for q, given in pairs]
    normalized = [[normalize_answer(a.text) for a in given] for given in answers]
    not_empty = [answer for given in answers for answer in given if answer.text]
    return Comparison(
        strategy=strategy,
        questions=len(questions),
        samples=len(answers[0]),
        exact_match=100 * fmean(fmean(s.exact_match for s in each) for each in scores),
        f1=100 * fmean(fmean(s.f1 for s in each) for each in scores),
        oracle_f1=100 * fmean(max(s.f1 for s in each) for each in scores),
        found=fmean(a.start is not None for a in not_empty) if not_empty else None,
        distinct=fmean(len(set(texts)) for texts in normalized),
        entropy=fmean(map(entropy, normalized)),
        seconds=seconds,
    )


def entropy(values: Sequence[str]) -> float:
    """Entropy of the values' frequencies, in nats: 0 where they are all equal."""
    total = len(values)
    return sum(n / total * log(total / n) for n in Counter(values).values())
