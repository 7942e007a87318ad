"""Compare decoding strategies: how good their answers are, and how much they vary.

A strategy gives several answers to a question: it draws samples, or finds the n best. Each way to
choose one of them is scored, so that choosing can be compared with taking any sample, or the best.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraqa.analysis.diversity import distinct_ngrams, entropy, self_bleu
from loraqa.analysis.significance import Estimate, mcnemar
from loraqa.answer.answered import Answered
from loraqa.answer.choose import least_risk, vote
from loraqa.answer.decode import Strategy
from loraqa.answer.journal import Journal, Stopwatch
from loraqa.answer.progress import Progress
from loraqa.answer.reader import Reader
from loraqa.answer.strategies import MAX_SAMPLES
from loraqa.errors import InputError
from loraqa.squad import Passage, QADataset, QuestionScore, normalize_answer, score_question

Floats = NDArray[np.float64]
Chooser = Callable[[Sequence[Answered]], Answered]

ONE, BEST, VOTE, RISK, ORACLE = "one sample", "best", "vote", "MBR", "oracle"
"""The ways to choose an answer, as `Choice.name` has them."""

# Numbers of samples of which all ways to choose are scored.
_COUNTS = (1, 2, 5, 10, 20, 50, 100)
# The data are answered in so many parts, or in fewer of so many questions.
_PARTS, _PART = 50, 50


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to choose one of a strategy's answers to each question, and how good it is.

    Attributes:
        name: `ONE`: any of the samples, the mean over all; `BEST`: the strategy's first answer;
            `VOTE` and `RISK`: see `choose.py`; `ORACLE`: the answer that scores highest, which is
            what choosing could reach.
        exact_match, f1: in percent.
        f1_gain: F1 minus that of the strategy's own `ONE` or `BEST`, question by question; None for
            these and for `ORACLE`.
        f1_change: F1 minus that of the first strategy's `ONE` or `BEST`, question by question; None
            for this one itself and for `ORACLE`.
        exact_match_p: p-value of McNemar's exact test of the same difference; None where there is
            none, and for the mean over several samples, which is neither right nor wrong.
    """

    name: str
    exact_match: Estimate
    f1: Estimate
    f1_gain: Estimate | None
    f1_change: Estimate | None
    exact_match_p: float | None


@dataclass(frozen=True, slots=True)
class OfSamples:
    """What the first `samples` samples give: F1 in percent, and different answers per question."""

    samples: int
    vote_f1: float
    mbr_f1: float
    oracle_f1: float
    distinct: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A strategy's answers to a data set.

    How much answers vary is measured on all samples, or on the best answer alone.

    Attributes:
        strategy: name of the strategy.
        draws: whether it draws samples.
        questions, contexts: how many were answered and read.
        samples: answers to each question, at most.
        choices: ways to choose an answer; the first is `ONE` or `BEST`.
        by_samples: what fewer samples give; empty if none are drawn.
        found: share of the non-empty answers that stand in the context; None if all are empty.
        distinct: different answers to a question, after normalization.
        entropy: entropy of a question's answers, after normalization, in nats.
        distinct_1, distinct_2: share of different words, and pairs of words, among those of a
            question's answers (see `distinct_ngrams`).
        self_bleu: BLEU of an answer against the question's others, 0 to 100; None if there is one.
        tokens: tokens of all answers to a question, their ends included.
        seconds: time spent on answering, before an interruption too.
    """

    strategy: str
    draws: bool
    questions: int
    contexts: int
    samples: int
    choices: tuple[Choice, ...]
    by_samples: tuple[OfSamples, ...]
    found: float | None
    distinct: float
    entropy: float
    distinct_1: float | None
    distinct_2: float | None
    self_bleu: float | None
    tokens: float
    seconds: float

    @property
    def plain(self) -> Choice:
        """The choice of any sample, or of the best answer."""
        return self.choices[0]

    @property
    def exact_match(self) -> float:
        """Exact match of the plain choice, in percent."""
        return self.plain.exact_match.mean

    @property
    def f1(self) -> float:
        """F1 of the plain choice, in percent."""
        return self.plain.f1.mean

    @property
    def oracle_f1(self) -> float:
        """F1 of the answers that score highest, in percent."""
        return (self.choice(ORACLE) or self.plain).f1.mean

    def choice(self, name: str) -> Choice | None:
        """Return the choice of this name; None if there is only one answer to choose."""
        return next((choice for choice in self.choices if choice.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Return all figures as plain JSON values."""
        scores = {
            "exact_match": self.exact_match,
            "f1": self.f1,
            "oracle_f1": self.oracle_f1,
        }
        return {"strategy": self.strategy, **scores, **asdict(self)}


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
    """Answer every question by each strategy, with `samples` samples or that many best answers.

    The data are answered in parts, each by all strategies. So the time that is left can be told
    from the time that went by, although some strategies are slower than others.

    Args:
        reader: the model.
        dataset: the questions.
        strategies: how answers are written; the others are compared with the first.
        samples: answers to each question, at most `MAX_SAMPLES`.
        seed: random seed of the samples.
        progress: called with the number of answers given so far by all strategies, and with the
            name of the current strategy. Of what a search finds only the best counts.
        journal: keeps the answers on disk as they come, so that an interrupted comparison goes on
            where it was.

    Raises:
        InputError: a question of v1.1 has no answer, one leaves no room for a context, or
            `samples` is out of range.
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise InputError(f"{samples} samples are out of range; give from 1 to {MAX_SAMPLES}.")
    answers: list[list[list[Answered]]] = [[] for _ in strategies]
    seconds = [0.0 for _ in strategies]
    parts = list(_parts(dataset.passages))
    # A question without room is refused before the work.
    reader.count_prompts(dataset.passages)
    given = [samples if strategy.draws else 1 for strategy in strategies]
    done, total = 0, len(dataset.order) * sum(given)
    for passages in parts:
        for index, strategy in enumerate(strategies):
            stopwatch = Stopwatch(journal)
            read = reader.read(
                passages,
                strategy,
                answers=samples,
                seed=seed,
                progress=progress
                and partial(_show, progress, strategy.name, done, total, given[index]),
                journal=journal,
            )
            answers[index] += [_settled(found, reader.no_answer_threshold) for found in read]
            seconds[index] += stopwatch.seconds
            done += given[index] * sum(len(passage.questions) for passage in passages)
    return summarize(strategies, dataset, answers, seconds)


def _settled(answers: list[Answered], threshold: float | None) -> list[Answered]:
    """Let "no answer" take the place of all others where it comes before them."""
    no_answer, *others = answers
    if threshold is None or no_answer.no_answer_probability <= threshold:
        return answers
    return [no_answer] * max(len(others), 1)


def _parts(passages: Sequence[Passage]) -> Iterator[Sequence[Passage]]:
    """Yield whole passages in their order, with about as many questions in each part."""
    least = max(sum(len(passage.questions) for passage in passages) / _PARTS, _PART)
    part: list[Passage] = []
    for passage in passages:
        part.append(passage)
        if sum(len(each.questions) for each in part) >= least:
            yield part
            part = []
    if part:
        yield part


def _show(
    progress: Progress,
    strategy: str,
    before: int,
    total: int,
    given: int,
    questions: float,
    _of_part: int,
) -> None:
    progress(before + given * questions, total, strategy)


def summarize(
    strategies: Sequence[Strategy],
    dataset: QADataset,
    answers: Sequence[Sequence[Sequence[Answered]]],
    seconds: Sequence[float],
) -> list[Comparison]:
    """Return the figures of the answers of each strategy, in the order of the passages."""
    places = [i for i, passage in enumerate(dataset.passages) for _ in passage.questions]
    contexts: NDArray[np.int64] = np.unique(places, return_inverse=True)[1]
    compared: list[Comparison] = []
    reference: Floats | None = None
    for strategy, given, spent in zip(strategies, answers, seconds, strict=True):
        scored = _Scored(dataset, given, strategy.draws)
        ways = scored.ways()
        if reference is None:
            reference = next(iter(ways.values()))
        choices = _choices(ways, reference, contexts)
        compared.append(
            Comparison(
                strategy=strategy.name,
                draws=strategy.draws,
                questions=len(contexts),
                contexts=int(contexts.max()) + 1,
                samples=scored.most,
                choices=tuple(choices),
                by_samples=tuple(scored.by_samples()),
                **_variety(given if strategy.draws else [each[:1] for each in given]),
                tokens=fmean(sum(answer.tokens for answer in each) for each in given),
                seconds=spent,
            )
        )
    return compared


class _Scored:
    """A strategy's answers to all questions, and the score of each."""

    def __init__(
        self, dataset: QADataset, answers: Sequence[Sequence[Answered]], draws: bool
    ) -> None:
        self.most = max(map(len, answers))
        self._answers, self._draws = answers, draws
        self._scores = [
            {answer.text: score_question(answer.text, question, dataset.version) for answer in each}
            for question, each in zip(dataset.questions, answers, strict=True)
        ]

    def ways(self) -> dict[str, Floats]:
        """Return exact match and F1 in percent, (questions, 2), of each way to choose an answer."""
        if not self._draws:
            ways = {BEST: self._of(lambda answers: answers[0])}
            return ways | self._of_several(self.most, RISK, ORACLE) if self.most > 1 else ways
        ways = {ONE: self._mean()}
        return ways | self._of_several(self.most, VOTE, RISK, ORACLE) if self.most > 1 else ways

    def by_samples(self) -> Iterator[OfSamples]:
        """Yield what the first samples give, if samples were drawn."""
        counts = [count for count in _COUNTS if count < self.most] + [self.most]
        for count in counts if self._draws else []:
            of_ways = self._of_several(count, VOTE, RISK, ORACLE)
            f1 = {name: float(scores[:, 1].mean()) for name, scores in of_ways.items()}
            distinct = fmean(len(set(texts)) for texts in _normalized(self._first(count)))
            yield OfSamples(count, f1[VOTE], f1[RISK], f1[ORACLE], distinct)

    def _of_several(self, count: int, *names: str) -> dict[str, Floats]:
        """Return the scores of these ways to choose among the first `count` answers."""
        choosers: dict[str, Chooser] = {VOTE: vote, RISK: self._least_risk}
        return {
            name: self._of(choosers[name], count) if name in choosers else self._oracle(count)
            for name in names
        }

    def _of(self, choose: Chooser, count: int | None = None) -> Floats:
        chosen = map(choose, self._first(count))
        pairs = zip(self._scores, chosen, strict=True)
        return _percent([scores[answer.text] for scores, answer in pairs])

    def _mean(self) -> Floats:
        pairs = zip(self._scores, self._answers, strict=True)
        means = [
            _percent([scores[answer.text] for answer in answers]).mean(axis=0)
            for scores, answers in pairs
        ]
        return np.array(means)

    def _oracle(self, count: int) -> Floats:
        pairs = zip(self._scores, self._first(count), strict=True)
        best = [
            _percent([scores[answer.text] for answer in answers]).max(axis=0)
            for scores, answers in pairs
        ]
        return np.array(best)

    def _first(self, count: int | None) -> list[Sequence[Answered]]:
        return [answers[:count] for answers in self._answers]

    def _least_risk(self, answers: Sequence[Answered]) -> Answered:
        """Weigh samples alike, and the n best by their probability."""
        if self._draws:
            return least_risk(answers, [1.0] * len(answers))
        best = max(answer.log_probability for answer in answers)
        return least_risk(answers, [math.exp(a.log_probability - best) for a in answers])


def _percent(scores: Sequence[QuestionScore]) -> Floats:
    """Return exact match and F1 in percent, (scores, 2)."""
    return 100 * np.array([(score.exact_match, score.f1) for score in scores], dtype=np.float64)


def _choices(
    ways: Mapping[str, Floats], reference: Floats, contexts: NDArray[np.int64]
) -> Iterator[Choice]:
    """Yield the figures of each way to choose, whose scores are (questions, 2)."""
    plain = next(iter(ways.values()))
    for name, scores in ways.items():
        gain, change = (
            None if scores is others or name == ORACLE else others for others in (plain, reference)
        )
        yield Choice(
            name,
            exact_match=Estimate.of(scores[:, 0], contexts),
            f1=Estimate.of(scores[:, 1], contexts),
            f1_gain=_difference(scores, gain, contexts),
            f1_change=_difference(scores, change, contexts),
            exact_match_p=_p_value(scores, change),
        )


def _difference(
    scores: Floats, others: Floats | None, contexts: NDArray[np.int64]
) -> Estimate | None:
    return None if others is None else Estimate.of(scores[:, 1] - others[:, 1], contexts)


def _p_value(scores: Floats, others: Floats | None) -> float | None:
    """Return McNemar's p-value; None if a question is neither right nor wrong."""
    if others is None or not np.isin([scores[:, 0], others[:, 0]], [0, 100]).all():
        return None
    return mcnemar(scores[:, 0], others[:, 0])


def _variety(answers: Sequence[Sequence[Answered]]) -> dict[str, Any]:
    """Return those figures of a `Comparison` that say how much answers vary."""
    normalized = _normalized(answers)
    not_empty = [answer for each in answers for answer in each if answer.text]
    several = [texts for texts in normalized if len(texts) > 1]
    return {
        "found": fmean(a.start is not None for a in not_empty) if not_empty else None,
        "distinct": fmean(len(set(texts)) for texts in normalized),
        "entropy": fmean(map(entropy, normalized)),
        "distinct_1": distinct_ngrams(normalized, 1),
        "distinct_2": distinct_ngrams(normalized, 2),
        "self_bleu": fmean(map(self_bleu, several)) if several else None,
    }


def _normalized(answers: Sequence[Sequence[Answered]]) -> list[list[str]]:
    return [[normalize_answer(answer.text) for answer in each] for each in answers]
