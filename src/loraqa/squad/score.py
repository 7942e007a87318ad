"""The official scores: exact match and F1 as evaluate-v1.1 and evaluate-v2.0 compute them."""

import functools
import itertools
import logging
import operator
import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loraqa.errors import InputError, counted, some_of
from loraqa.squad.dataset import QADataset
from loraqa.squad.passage import Question, Version

logger = logging.getLogger("loraqa")

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# evaluate-v2.0's default: predictions with a higher no-answer probability become "no answer".
_NO_ANSWER_THRESHOLD = 1.0
# Number of question ids listed in a warning.
_LISTED = 20


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """Exact match (0 or 1) and F1 (0 to 1) of one prediction, each the maximum over the golds."""

    exact_match: float
    f1: float


@dataclass(frozen=True, slots=True)
class MeanScore:
    """Exact match and F1 of `total` questions, in percent."""

    exact_match: float
    f1: float
    total: int


@dataclass(frozen=True, slots=True)
class BestScore:
    """The best scores (percent) that a no-answer threshold reaches, and the thresholds.

    A question whose no-answer probability is above the threshold counts as answered by "no
    answer", any other by its prediction.
    """

    exact_match: float
    exact_match_threshold: float
    f1: float
    f1_threshold: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a data set.

    Attributes:
        overall: over all questions.
        by_question: question id to its score.
        missing: ids of questions without a prediction; they score 0.
        unknown: ids of predictions without a question; they are ignored.
        has_answer, no_answer: over answerable and unanswerable questions (v2.0 only), None if
            there are no such questions.
        best: with the best no-answer threshold, if no-answer probabilities were given.
    """

    overall: MeanScore
    by_question: Mapping[str, QuestionScore]
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    has_answer: MeanScore | None = None
    no_answer: MeanScore | None = None
    best: BestScore | None = None

    @property
    def exact_match(self) -> float:
        """Percent of predictions that equal an annotator's answer after normalization."""
        return self.overall.exact_match

    @property
    def f1(self) -> float:
        """Mean word-level F1 against the closest annotator's answer, in percent."""
        return self.overall.f1

    @property
    def total(self) -> int:
        """Number of questions."""
        return self.overall.total

    def to_json(self) -> dict[str, Any]:
        """Return the scores under the names that the official scripts use."""
        figures: dict[str, Any] = {
            "exact_match": self.exact_match,
            "f1": self.f1,
            "total": self.total,
        }
        for name, mean in (("HasAns", self.has_answer), ("NoAns", self.no_answer)):
            if mean is not None:
                figures[f"{name}_exact"] = mean.exact_match
                figures[f"{name}_f1"] = mean.f1
                figures[f"{name}_total"] = mean.total
        if self.best is not None:
            figures["best_exact"] = self.best.exact_match
            figures["best_exact_thresh"] = self.best.exact_match_threshold
            figures["best_f1"] = self.best.f1
            figures["best_f1_thresh"] = self.best.f1_threshold
        return {**figures, "missing": len(self.missing), "unknown": len(self.unknown)}


def score(
    predictions: Mapping[str, str],
    dataset: QADataset,
    no_answer_probabilities: Mapping[str, float] | None = None,
) -> Scores:
    """Score predictions as the official script of the data's version does.

    Sums follow the order of the source, so that the scores equal the official ones to the last
    digit. A warning lists questions without a prediction and predictions without a question.

    Args:
        predictions: question id to text.
        dataset: the questions and their answers; its version selects evaluate-v1.1 or v2.0.
        no_answer_probabilities: question id to probability, for every question (v2.0 only).

    Raises:
        InputError: there are no questions; a v1.1 question has no answer; no-answer probabilities
            are given for v1.1 or not for every question.
    """
    questions, version = dataset.questions_in_order, dataset.version
    if not questions:
        raise InputError("There are no questions to score.")
    by_question = {q.id: score_question(predictions.get(q.id), q, version) for q in questions}
    missing = tuple(id for id in by_question if id not in predictions)
    unknown = tuple(id for id in predictions if id not in by_question)
    _warn(missing, "Questions without a prediction, which score 0")
    _warn(unknown, "Predictions for questions that are not in the data")
    best = None
    if no_answer_probabilities is not None:
        _check_probabilities(no_answer_probabilities, questions, version)
        best = _best(by_question, predictions, questions, no_answer_probabilities)
        by_question = _apply_threshold(by_question, questions, no_answer_probabilities)
    kinds = (True, False) if version == "2.0" else ()
    means = {kind: _mean_of_kind(kind, by_question, questions) for kind in kinds}
    return Scores(
        overall=_mean(by_question.values()),
        by_question=by_question,
        missing=missing,
        unknown=unknown,
        has_answer=means.get(True),
        no_answer=means.get(False),
        best=best,
    )


def check_ids(dataset: QADataset, predictions: Collection[str]) -> None:
    """Raise `InputError` if data without ids of their own lack predictions.

    Predictions that loraqa wrote have the ids that it makes; those made elsewhere cannot.
    """
    if dataset.made_ids and not set(dataset.order) <= set(predictions):
        raise InputError(
            f"{dataset.source} has {counted(dataset.made_ids, 'question')} without an id, and "
            "predictions are found by id; add the column `id`."
        )


def score_question(prediction: str | None, question: Question, version: Version) -> QuestionScore:
    """Return the best exact match and the best F1 over the question's golds.

    A missing prediction scores 0. v2.0 ignores golds that consist of articles and punctuation
    only; if no gold remains, the empty prediction is correct.

    Raises:
        InputError: a v1.1 question has no answer.
    """
    golds = [normalize_answer(text) for text in set(question.golds)]
    if version == "2.0":
        golds = [gold for gold in golds if gold] or [""]
    elif not golds:
        raise InputError(f"Question {question.id!r} has no answer; score the data as v2.0.")
    if prediction is None:
        return QuestionScore(0.0, 0.0)
    predicted = normalize_answer(prediction)
    return QuestionScore(
        exact_match=float(predicted in golds),
        f1=max(_f1(predicted.split(), gold.split(), version) for gold in golds),
    )


def token_f1(first: str, second: str) -> float:
    """Return F1 of two answers' words after normalization, 0 to 1; 1 if both have none."""
    return _f1(normalize_answer(first).split(), normalize_answer(second).split(), "2.0")


# The same answers are scored in many ways.
@functools.lru_cache(maxsize=2**16)
def normalize_answer(text: str) -> str:
    """Lower-case the text, remove punctuation and articles, and join the words by one space."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _f1(predicted: list[str], gold: list[str], version: Version) -> float:
    """Return the harmonic mean of word-level precision and recall."""
    common = sum((Counter(predicted) & Counter(gold)).values())
    if not common:
        # As in the scripts, two empty answers score 1 in v2.0 and 0 in v1.1.
        return float(version == "2.0" and predicted == gold)
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _mean(scores: Collection[QuestionScore]) -> MeanScore:
    total = len(scores)
    return MeanScore(
        exact_match=100.0 * _sum(score.exact_match for score in scores) / total,
        f1=100.0 * _sum(score.f1 for score in scores) / total,
        total=total,
    )


def _sum(values: Iterable[float]) -> float:
    """Add from left to right, like the official scripts; `sum` rounds differently since 3.12."""
    return functools.reduce(operator.add, values, 0.0)


def _mean_of_kind(
    answerable: bool, scores: Mapping[str, QuestionScore], questions: Iterable[Question]
) -> MeanScore | None:
    kind = [scores[question.id] for question in questions if question.answerable is answerable]
    return _mean(kind) if kind else None


def _check_probabilities(
    probabilities: Mapping[str, float], questions: Iterable[Question], version: Version
) -> None:
    if version == "1.1":
        raise InputError(
            "No-answer probabilities need SQuAD v2.0 data, but this is v1.1; leave them out."
        )
    without = [question.id for question in questions if question.id not in probabilities]
    if without:
        raise InputError(
            f"Questions without a no-answer probability: {len(without)} (the first is "
            f"{without[0]!r}); give one for every question or for none."
        )


def _apply_threshold(
    raw: Mapping[str, QuestionScore],
    questions: Iterable[Question],
    probabilities: Mapping[str, float],
) -> dict[str, QuestionScore]:
    """Return the scores with predictions above the threshold replaced by "no answer"."""
    right, wrong = QuestionScore(1.0, 1.0), QuestionScore(0.0, 0.0)
    return {
        question.id: raw[question.id]
        if probabilities[question.id] <= _NO_ANSWER_THRESHOLD
        else (wrong if question.answerable else right)
        for question in questions
    }


def _best(
    raw: Mapping[str, QuestionScore],
    predictions: Mapping[str, str],
    questions: Collection[Question],
    probabilities: Mapping[str, float],
) -> BestScore:
    """Find the best thresholds by accepting predictions in order of no-answer probability."""
    by_id = {question.id: question for question in questions}
    accepted = [id for id in sorted(probabilities, key=probabilities.__getitem__) if id in by_id]
    # With no prediction accepted, every unanswerable question is right.
    start = float(sum(not question.answerable for question in questions))

    def highest(gains: Iterable[float]) -> tuple[float, float]:
        totals = list(itertools.accumulate(gains, initial=start))
        best = max(totals)
        position = totals.index(best)
        threshold = probabilities[accepted[position - 1]] if position else 0.0
        return 100.0 * best / len(by_id), threshold

    def gain(id: str, score: float) -> float:
        if by_id[id].answerable:
            return score
        # Only an empty prediction keeps the question right; a missing one is wrong.
        return -1.0 if predictions.get(id) != "" else 0.0

    exact = highest(gain(id, raw[id].exact_match) for id in accepted)
    f1 = highest(gain(id, raw[id].f1) for id in accepted)
    return BestScore(*exact, *f1)


def _warn(ids: Collection[str], what: str) -> None:
    if ids:
        logger.warning("%s: %d (%s).", what, len(ids), some_of(ids, _LISTED))
