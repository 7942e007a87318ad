"""Passages, their questions and the questions' answers."""

from dataclasses import dataclass
from typing import Literal

Version = Literal["1.1", "2.0"]
"""SQuAD v1.1, where every question has an answer, or v2.0, where some have none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A span of the context: `context[start : start + len(text)] == text`."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Character offset just past the answer."""
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the answers of all annotators; none if the context does not answer it.

    Attributes:
        id: the question's id.
        text: the question.
        answers: the answers that have a place in the context, to learn from.
        golds: the texts of all answers as the data give them, to score with; by default those of
            `answers`.
    """

    id: str
    text: str
    answers: tuple[Answer, ...] = ()
    golds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.golds:
            object.__setattr__(self, "golds", tuple(answer.text for answer in self.answers))

    @property
    def answerable(self) -> bool:
        """Whether there is an answer (SQuAD v2.0: `not is_impossible`)."""
        return bool(self.golds)


@dataclass(frozen=True, slots=True)
class Passage:
    """One context with all its questions."""

    context: str
    questions: tuple[Question, ...] = ()
    title: str = ""
