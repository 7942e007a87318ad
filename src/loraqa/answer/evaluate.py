"""Answer a whole data set and score the answers as SQuAD does."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loraqa.answer.decode import Strategy
from loraqa.answer.journal import Journal, Stopwatch
from loraqa.answer.progress import Progress
from loraqa.answer.reader import Answered, Reader
from loraqa.answer.strategies import DEFAULT_STRATEGY, parse_strategy
from loraqa.squad import Passage, QADataset, Scores, score


@dataclass(frozen=True)
class Evaluated:
    """Answers to a data set, and how good they are.

    Attributes:
        answers: one answer to each question, in the order of the passages.
        scores: the official scores, overall and by question; for v2.0 with the best thresholds on
            the probability of no answer.
        seconds: time spent on answering, before an interruption too.
    """

    answers: tuple[Answered, ...]
    scores: Scores
    seconds: float

    @property
    def predictions(self) -> dict[str, str]:
        """Question id to text: a predictions file in the official format."""
        return {answer.question_id: answer.text for answer in self.answers}

    @property
    def questions_per_second(self) -> float:
        """How fast the questions were answered."""
        return len(self.answers) / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Scores and speed as plain JSON values."""
        return {
            **self.scores.to_json(),
            "seconds": self.seconds,
            "questions_per_second": self.questions_per_second,
        }


def evaluate(
    reader: Reader,
    dataset: QADataset,
    strategy: Strategy | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Evaluated:
    """Answer every question, by span search or `strategy`, and score the answers.

    Args:
        reader: the model.
        dataset: the questions.
        strategy: how answers are written.
        seed: random seed of strategies that sample.
        progress: called with the number of prompts answered so far.
        journal: keeps the answers on disk as they come, so that an interrupted evaluation goes on
            where it was.

    Raises:
        InputError: there are no questions, or one leaves no room for a context.
    """
    stopwatch = Stopwatch(journal)
    read = reader.read(
        dataset.passages,
        strategy or parse_strategy(DEFAULT_STRATEGY),
        seed=seed,
        progress=progress,
        journal=journal,
    )
    seconds = stopwatch.seconds
    answers = tuple(first for first, *_ in read)
    predictions = {answer.question_id: answer.text for answer in answers}
    no_answer = {answer.question_id: answer.no_answer_probability for answer in answers}
    scores = score(predictions, dataset, no_answer if dataset.version == "2.0" else None)
    return Evaluated(answers, scores, seconds)


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
