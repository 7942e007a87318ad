"""Compare decoding strategies: how good their answers are, and how much they vary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from statistics import fmean

from loraqa.answer.decode import Strategy
from loraqa.answer.journal import Journal, Stopwatch
from loraqa.answer.progress import Progress
from loraqa.answer.reader import Answered, Reader
from loraqa.answer.strategies import MAX_SAMPLES
from loraqa.errors import InputError
from loraqa.squad import QADataset, normalize_answer, score_question


@dataclass(frozen=True, slots=True)
class Comparison:
    """A strategy's answers to a data set.

    Attributes:
        strategy: name of the strategy.
        questions: number of questions answered.
        samples: answers to each question; 1 if the strategy does not sample.
        exact_match, f1: mean over all answers, in percent.
        oracle_f1: F1 of the best answer to each question, in percent.
        found: share of the non-empty answers that stand in the context; None if all are empty.
        distinct: different answers to a question, after normalization.
        entropy: entropy of a question's answers, after normalization, in nats.
        seconds: time spent on answering, before an interruption too.
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
    dataset: QADataset,
    strategies: Sequence[Strategy],
    *,
    samples: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[Comparison]:
    """Answer every question by each strategy, `samples` times if it samples.

    Args:
        reader: the model.
        dataset: the questions.
        strategies: how answers are written.
        samples: answers to each question by a strategy that samples, at most `MAX_SAMPLES`.
        seed: random seed of the samples.
        progress: called with the number of prompts answered so far by all strategies, and with
            the place and name of the current strategy.
        journal: keeps the answers on disk as they come, so that an interrupted comparison goes on
            where it was.

    Raises:
        InputError: a question of v1.1 has no answer, one leaves no room for a context, or
            `samples` is out of range.
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise InputError(f"{samples} samples are out of range; give from 1 to {MAX_SAMPLES}.")
    compared = []
    for index, strategy in enumerate(strategies):
        show = partial(_show, progress, strategies, index) if progress else None
        stopwatch = Stopwatch(journal)
        answers = reader.read(
            dataset.passages,
            strategy,
            answers=samples if strategy.draws else 1,
            seed=seed,
            progress=show,
            journal=journal,
        )
        compared.append(summarize(strategy.name, dataset, answers, stopwatch.seconds))
    return compared


def _show(
    progress: Progress, strategies: Sequence[Strategy], index: int, done: int, total: int
) -> None:
    """Report the prompts of all strategies together: each answers the same ones."""
    count = len(strategies)
    part = f"strategy {index + 1} of {count}: {strategies[index].name}"
    progress(index * total + done, count * total, part)


def summarize(
    strategy: str,
    dataset: QADataset,
    answers: Sequence[Sequence[Answered]],
    seconds: float,
) -> Comparison:
    """Return the figures of answers, which are in the order of the passages."""
    questions = dataset.questions
    pairs = list(zip(questions, answers, strict=True))
    scores = [[score_question(a.text, q, dataset.version) for a in given] for q, given in pairs]
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
    """Entropy of the values' frequencies, in nats: 0 if they are all equal."""
    total = len(values)
    return sum(n / total * log(total / n) for n in Counter(values).values())
