"""A data set as it was read: passages, their source, and counts of repairs and skipped parts."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from loraqa.garbage import no_garbage
from loraqa.squad.passage import Passage, Question, Version


@dataclass(frozen=True)
class QADataset:
    """Passages and how they were read.

    Attributes:
        source: the file or hub name.
        version: the SQuAD version.
        passages: one per context, with all its questions, in order of first appearance.
        order: question ids in the order of the source; it differs from the order of the passages
            if the source returns to an earlier context.
        repaired: number of answers whose offset was corrected.
        skipped: kind of skipped part ("questions", "answers", ...) to its number.
    """

    source: str
    version: Version
    passages: tuple[Passage, ...]
    order: tuple[str, ...]
    repaired: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_passages(
        cls, passages: Iterable[Passage], version: Version, source: str = "passages"
    ) -> "QADataset":
        """Return a data set of these passages, with the questions in their order."""
        passages = tuple(passages)
        order = tuple(question.id for passage in passages for question in passage.questions)
        return cls(source, version, passages, order)

    def with_passages(self, passages: Iterable[Passage]) -> "QADataset":
        """Return the data set with these passages only; they hold some of its questions."""
        passages = tuple(passages)
        kept = {question.id for passage in passages for question in passage.questions}
        order = tuple(id for id in self.order if id in kept)
        return replace(self, passages=passages, order=order)

    @property
    def questions(self) -> list[Question]:
        """All questions, in the order of the passages."""
        return [question for passage in self.passages for question in passage.questions]

    @property
    def questions_in_order(self) -> list[Question]:
        """Every question, in the order of the source."""
        place = {id: number for number, id in enumerate(self.order)}
        return sorted(self.questions, key=lambda question: place[question.id])

    @property
    def same_text(self) -> int:
        """Number of questions whose text repeats an earlier question on the same context."""
        return sum(
            len(passage.questions) - len({question.text for question in passage.questions})
            for passage in self.passages
        )

    @cached_property
    @no_garbage()
    def fingerprint(self) -> str:
        """SHA-256 (hex) of version and passages; the same for every file format."""
        content = [self.version, [_plain(passage) for passage in self.passages]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def counts(self) -> dict[str, Any]:
        """Return all counts as JSON values."""
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
    """Return the passage as nested lists, which are faster to serialize than dicts."""
    questions = [
        (q.id, q.text, [(answer.text, answer.start) for answer in q.answers])
        for q in passage.questions
    ]
    return [passage.title, passage.context, questions]
