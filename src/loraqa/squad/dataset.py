"""The data as read: passages, where they came from, and what was met on the way."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from loraqa.garbage import no_garbage
from loraqa.squad.passage import Passage, Question, Version


@dataclass(frozen=True)
class QADataset:
    """Passages in the order of their source, all questions on one context together.

    `order` holds the question ids in the order of the source; the passages have another one where
    a context comes up again further on. `repaired` counts answers whose offset was put right,
    `skipped` what was left out: its name ("questions", "answers", ...) and how many.
    """

    source: str
    version: Version
    passages: tuple[Passage, ...]
    order: tuple[str, ...]
    repaired: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def questions(self) -> list[Question]:
        """Every question, in the order of the passages."""
        return [question for passage in self.passages for question in passage.questions]

    @property
    def same_text(self) -> int:
        """Questions asked in words in which the same context was asked before."""
        return sum(
            len(passage.questions) - len({question.text for question in passage.questions})
            for passage in self.passages
        )

    @cached_property
    @no_garbage()
    def fingerprint(self) -> str:
        """SHA-256 (hex) of version and passages, the same in whatever format they are stored."""
        told = [self.version, [_plain(passage) for passage in self.passages]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def counts(self) -> dict[str, Any]:
        """How many of everything, ready for JSON."""
        questions = self.questions
        return {
            "contexts": len(self.passages),
            "questions": len(questions),
            "unanswerable": sum(not question.answerable for question in questions),
            "same_text": self.same_text,
            "repaired": self.repaired,
            "skipped": dict(self.skipped),
        }


def _plain(passage: Passage) -> list[Any]:
    """All that a passage holds, as lists, which take less time to write than objects with names."""
    questions = [
        (q.id, q.text, [(answer.text, answer.start) for answer in q.answers])
        for q in passage.questions
    ]
    return [passage.title, passage.context, questions]
