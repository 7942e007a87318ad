"""Answer a whole data set and score the answers as SQuAD does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loraqa.answer.answered import Answered
from loraqa.answer.decode import Strategy
from loraqa.answer.journal import Journal, Stopwatch
from loraqa.answer.progress import Progress
from loraqa.answer.reader import Reader, with_close_bounds
from loraqa.answer.strategies import DEFAULT_STRATEGY, parse_strategy
from loraqa.squad import BestScore, Passage, QADataset, Scores, score


@dataclass(frozen=True)
class Evaluated:
    """Answers to a data set, and how good they are.

    Attributes:
        candidates: the answers to each question, best first, in the order of the passages.
        scores: the official scores, overall and by question; for v2.0 with the best thresholds on
            the probability of no answer, which are chosen on these very questions.
        seconds: time spent on answering, before an interruption too.
    """

    candidates: tuple[tuple[Answered, ...], ...]
    scores: Scores
    seconds: float

    @property
    def answers(self) -> tuple[Answered, ...]:
        """The answer to each question, in the order of the passages."""
        return tuple(first for first, *_ in self.candidates)

    @property
    def predictions(self) -> dict[str, str]:
        """Question id to text: a predictions file in the official format."""
        return {answer.question_id: answer.text for answer in self.answers}

    @property
    def no_answer_probabilities(self) -> dict[str, float]:
        """Question id to probability of no answer: a file in the official format."""
        return {answer.question_id: answer.no_answer_probability for answer in self.answers}

    @property
    def questions_per_second(self) -> float:
        """How fast the questions were answered."""
        return len(self.candidates) / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Scores and speed as plain JSON values.

        For v2.0 they say what it would score to give no answer to any question.
        """
        none = self.scores.no_answer
        always = {"always_no_answer": 100 * none.total / self.scores.total} if none else {}
        return {
            **self.scores.to_json(),
            **always,
            "seconds": self.seconds,
            "questions_per_second": self.questions_per_second,
        }


def evaluate(
    reader: Reader,
    dataset: QADataset,
    strategy: Strategy | None = None,
    *,
    answers: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Evaluated:
    """Answer every question, by span search or `strategy`, and score the answers.

    Args:
        reader: the model.
        dataset: the questions.
        strategy: how answers are written.
        answers: how many answers to search for, of which the first is scored.
        seed: random seed of strategies that sample.
        progress: called with the number of questions answered so far.
        journal: keeps the answers on disk as they come, so that an interrupted evaluation goes on
            where it was.

    Raises:
        InputError: there are no questions, or one leaves no room for a context.
    """
    stopwatch = Stopwatch(journal)
    strategy = strategy or parse_strategy(DEFAULT_STRATEGY)
    read = reader.read(
        dataset.passages,
        strategy if reader.calibration is None else with_close_bounds(strategy),
        answers=answers,
        seed=seed,
        progress=progress,
        journal=journal,
    )
    seconds = stopwatch.seconds
    # "No answer" may come before the best answer.
    best = [next((each for each in found if each.text), found[0]) for found in read]
    scores = score({first.question_id: first.text for first, *_ in read}, dataset)
    scores = replace(scores, best=best_of(best, dataset))
    return Evaluated(tuple(map(tuple, read)), scores, seconds)


def best_of(answers: Sequence[Answered], dataset: QADataset) -> BestScore | None:
    """Return the best scores that a no-answer threshold reaches; None for SQuAD v1.1.

    Args:
        answers: an answer to each question, chosen without a threshold.
        dataset: the questions.
    """
    if dataset.version == "1.1":
        return None
    predictions = {answer.question_id: answer.text for answer in answers}
    probabilities = {answer.question_id: answer.no_answer_probability for answer in answers}
    return score(predictions, dataset, probabilities).best


def sample_questions(dataset: QADataset, count: int, seed: int) -> QADataset:
    """Draw whole passages until they hold `count` questions; the last one may lose some.

    Passages are whole because the questions of a passage share its computation.
    """
    chosen: list[Passage] = []
    for index in np.random.default_rng(seed).permutation(len(dataset.passages)):
        if count <= 0:
            break
        passage = dataset.passages[index]
        chosen.append(replace(passage, questions=passage.questions[:count]))
        count -= len(passage.questions)
    return dataset.with_passages(chosen)
