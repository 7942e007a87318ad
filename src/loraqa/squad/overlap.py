"""Find the dev questions and contexts that are in the training data, too.

Scores on them say how well a model remembers, not how well it reads.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loraqa.squad.dataset import QADataset
from loraqa.squad.passage import Passage, Question


@dataclass(frozen=True)
class Seen:
    """Hashes of the texts of training data. Case and kinds of blanks make no difference.

    Attributes:
        contexts: hashes of the contexts.
        questions: hashes of the questions, each with one of its answers; a question without an
            answer is hashed with its context, because the same words may be asked about another.
    """

    contexts: frozenset[str]
    questions: frozenset[str]

    @classmethod
    def in_data(cls, data: QADataset) -> "Seen":
        """Return the hashes of a data set."""
        pairs = ((passage, q) for passage in data.passages for q in passage.questions)
        return cls(
            contexts=frozenset(_hash(passage.context) for passage in data.passages),
            questions=frozenset(mark for passage, q in pairs for mark in _marks(passage, q)),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, list[str]]) -> "Seen":
        """Return what `to_json` described."""
        return cls(**{name: frozenset(hashes) for name, hashes in values.items()})

    def to_json(self) -> dict[str, list[str]]:
        """Return the hashes as JSON values."""
        return {"contexts": sorted(self.contexts), "questions": sorted(self.questions)}


@dataclass(frozen=True)
class Overlap:
    """How many questions and contexts of dev data are in the training data, too.

    Attributes:
        questions: questions with the words and an answer of a training question.
        of_questions: all questions of the dev data.
        contexts: contexts that are training contexts.
        of_contexts: all contexts of the dev data.
    """

    questions: int
    of_questions: int
    contexts: int
    of_contexts: int

    def __bool__(self) -> bool:
        """Whether anything is shared."""
        return bool(self.questions or self.contexts)

    def __str__(self) -> str:
        return (
            f"{self.questions:,} of {self.of_questions:,} dev questions and {self.contexts:,} of "
            f"{self.of_contexts:,} dev contexts are in the training data, too"
        )


def overlap(seen: Seen, dev: QADataset) -> Overlap:
    """Count the questions and contexts of dev data that were seen in training."""
    pairs: list[tuple[Passage, Question]] = [(p, q) for p in dev.passages for q in p.questions]
    return Overlap(
        questions=sum(any(mark in seen.questions for mark in _marks(*pair)) for pair in pairs),
        of_questions=len(pairs),
        contexts=sum(_hash(passage.context) in seen.contexts for passage in dev.passages),
        of_contexts=len(dev.passages),
    )


def _marks(passage: Passage, question: Question) -> Iterator[str]:
    """Yield a hash of the question with each of its answers; without any, with its context."""
    for text in set(question.golds) or {passage.context}:
        yield _hash(question.text, text)


def _hash(*texts: str) -> str:
    plain = "\n".join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]
