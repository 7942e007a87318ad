"""Answering a whole data set and scoring the answers as SQuAD does."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loraqa.answer.decode import Greedy, Strategy
from loraqa.answer.reader import Answered, Progress, Reader
from loraqa.squad import Passage, Scores, Version, score


@dataclass(frozen=True)
class Evaluated:
    """Answers to a data set, and how good they are.

    Attributes:
        answers: one to each question, in the order of the passages.
        scores: the official ones, overall and by question; for v2.0 with the best thresholds on
            the probability of no answer.
        seconds: that answering took.
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
    passages: Sequence[Passage],
    version: Version,
    strategy: Strategy | None = None,
    *,
    order: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluated:
    """Answer every question (greedily by default) and score the answers.

    Args:
        reader: what answers.
        passages, version, order: those of a `QADataset`.
        strategy: how answers are written.
        seed: of the draws.
        progress: is told how far it is.

    Raises:
        InputError: there are no questions, or one leaves no room for a context.
    """
    start = time.perf_counter()
    read = reader.read(passages, strategy or Greedy(), seed=seed, progress=progress)
    seconds = time.perf_counter() - start
    answers = tuple(first for first, *_ in read)
    predictions = {answer.question_id: answer.text for answer in answers}
    no_answer = {answer.question_id: answer.no_answer_probability for answer in answers}
    scores = score(
        predictions, passages, version, no_answer if version == "2.0" else None, order=order
    )
    return Evaluated(answers, scores, seconds)


def sample_questions(passages: Sequence[Passage], count: int, seed: int) -> list[Passage]:
    """Whole passages, drawn until they hold `count` questions; the last one may lose some.

    Whole ones, because the questions of a passage share its computation.
    """
    chosen: list[Passage] = []
    for index in np.random.default_rng(seed).permutation(len(passages)):
        if count <= 0:
            break
        passage = passages[index]
        chosen.append(replace(passage, questions=passage.questions[:count]))
        count -= len(passage.questions)
    return chosen
