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
    """A question and every annotator's answer; no answers if the context does not answer it."""

    id: str
    text: str
    answers: tuple[Answer, ...] = ()

    @property
    def answerable(self) -> bool:
        """Whether the context contains an answer (SQuAD v2.0: `not is_impossible`)."""
        return bool(self.answers)


@dataclass(frozen=True, slots=True)
class Passage:
    """One context with all its questions."""

    context: str
    questions: tuple[Question, ...] = ()
    title: str = ""
