"""A data set as it was read: passages, their source, and counts of repairs and skipped parts."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import TypeAdapter

from loraqa.errors import InputError, counted, quote
from loraqa.garbage import no_garbage
from loraqa.squad.checks import LISTED, Place, Problem, Unplaced, listing
from loraqa.squad.lookalikes import AnswerFinder, nearest
from loraqa.squad.passage import Answer, Passage, Question, Version

logger = logging.getLogger("loraqa")

# Tab, newline and carriage return are ordinary white space in SQuAD's contexts.
_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class QADataset:
    """Passages and how they were read.

    Attributes:
        source: the file or hub name.
        version: the SQuAD version.
        passages: one per context, with all its questions, in order of first appearance.
        order: question ids in the order of the source; it differs from the order of the passages
            if the source returns to an earlier context.
        repaired: number of answers whose offset or look-alike characters were corrected.
        skipped: kind of skipped part ("questions", "answers", ...) to its number.
        unplaced: why answers have no place in the context; they count as golds all the same.
        made_ids: number of questions without an id, whose id was made from their content.
        unanswerable_at: where the first question without an answer is in the source, if known.
    """

    source: str
    version: Version
    passages: tuple[Passage, ...]
    order: tuple[str, ...]
    repaired: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    unplaced: tuple[Unplaced, ...] = ()
    made_ids: int = 0
    unanswerable_at: Place | None = None

    @classmethod
    def from_passages(
        cls, passages: Iterable[Passage], version: Version, source: str = "passages"
    ) -> "QADataset":
        """Return a data set of these passages, with the questions in their order."""
        passages = tuple(passages)
        order = tuple(question.id for passage in passages for question in passage.questions)
        return cls(source, version, passages, order)

    def to_json(self) -> dict[str, Any]:
        """Return source, version and passages as plain JSON values."""
        passages = [asdict(passage) for passage in self.passages]
        return {"source": self.source, "version": self.version, "passages": passages}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "QADataset":
        """Read what `to_json` returned, with the questions in the order of the passages."""
        passages = TypeAdapter(tuple[Passage, ...]).validate_python(values["passages"])
        return cls.from_passages(passages, values["version"], values["source"])

    def with_passages(self, passages: Iterable[Passage]) -> "QADataset":
        """Return the data set with these passages only; they hold some of its questions."""
        passages = tuple(passages)
        kept = {question.id for passage in passages for question in passage.questions}
        order = tuple(id for id in self.order if id in kept)
        unplaced = tuple(problem for problem in self.unplaced if problem.place.id in kept)
        return replace(self, passages=passages, order=order, unplaced=unplaced)

    def to_learn_from(self, on_bad: Literal["stop", "skip"]) -> "QADataset":
        """Return the data set without the questions none of whose answers has a place.

        An answer that occurs more than once and has no offset is given its first place. A model
        learns its text, so the place only decides which windows of a long context hold it.

        Raises:
            InputError: there are such questions and `on_bad` is "stop", or there are no others.
        """
        self._tell_of_repeated()
        return self.with_first_places()._without_unplaced(on_bad)

    def _tell_of_repeated(self) -> None:
        repeated = [each for each in self.unplaced if each.repeated]
        if repeated:
            logger.info(
                f"{self.source}: answers without an offset that occur more than once in their "
                f"context: {len(repeated):,}, such as {quote(repeated[0].text)} "
                f"({repeated[0].place}). Training takes the first place of each; give the offset "
                "where another one is meant."
            )

    def with_first_places(self) -> "QADataset":
        """Return the data set with answers that have no offset and are repeated at first places."""
        texts: dict[str, list[str]] = {}
        for each in self.unplaced:
            if each.repeated:
                texts.setdefault(str(each.place.id), []).append(each.text)
        if not texts:
            return self
        passages = tuple(_with_answers_placed(passage, texts) for passage in self.passages)
        unplaced = tuple(each for each in self.unplaced if not each.repeated)
        return replace(self, passages=passages, unplaced=unplaced)

    def _without_unplaced(self, on_bad: Literal["stop", "skip"]) -> "QADataset":
        without = {q.id for q in self.questions if q.answerable and not q.answers}
        if without and on_bad == "stop":
            raise InputError(
                f"{self._listing(without)}\nAn answer must be a quotation of its context. Correct "
                "them, or leave them out with --on-bad skip."
            )
        if self.unplaced:
            logger.warning(
                f"{self.source}: training leaves out "
                f"{counted(len(self.unplaced), 'answer')} without a place in the context."
            )
        if not without:
            return self
        logger.warning("%s", self._listing(without))
        kept = [
            replace(passage, questions=tuple(q for q in passage.questions if q.id not in without))
            for passage in self.passages
        ]
        skipped = Counter(self.skipped) + Counter(questions=len(without))
        data = self.with_passages(passage for passage in kept if passage.questions)
        if not data.order:
            raise InputError(f"{self.source} has no question to learn from; correct its answers.")
        return replace(data, skipped=dict(skipped))

    def _listing(self, without: Collection[str]) -> str:
        """List the answers of some questions that have no place, with what may be meant."""
        contexts = {q.id: passage.context for passage in self.passages for q in passage.questions}
        unplaced = [each for each in self.unplaced if each.place.id in without]
        listed = [_with_hint(each, contexts[str(each.place.id)]) for each in unplaced[:LISTED]]
        return listing(self.source, listed, len(unplaced))

    @property
    def control_characters(self) -> int:
        """Number of control characters in the contexts, except tabs and ends of lines."""
        return sum(len(_CONTROL.findall(passage.context)) for passage in self.passages)

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
            "unplaced": len(self.unplaced),
            "made_ids": self.made_ids,
            "control_characters": self.control_characters,
            "skipped": dict(self.skipped),
        }


def _with_answers_placed(passage: Passage, texts: Mapping[str, Sequence[str]]) -> Passage:
    """Add answers at their first places; `texts` are those of each question, by its id."""
    finder = AnswerFinder(passage.context)

    def placed(question: Question) -> Question:
        spans = (finder.spans(text)[0] for text in texts.get(question.id, ()))
        found = tuple(Answer(passage.context[start:end], start) for start, end in spans)
        return replace(question, answers=question.answers + found)

    return replace(passage, questions=tuple(map(placed, passage.questions)))


def _with_hint(unplaced: Unplaced, context: str) -> Problem:
    """Return why an answer has no place, with the passage that it may have been copied from."""
    similar = "" if unplaced.text in context else nearest(unplaced.text, context)
    hint = f"; the nearest passage is {quote(similar)}" if similar else ""
    return Problem(unplaced.place, unplaced.reason + hint)


def _plain(passage: Passage) -> list[Any]:
    """Return the passage as nested lists, which are faster to serialize than dicts."""
    return [passage.title, passage.context, [_plain_question(q) for q in passage.questions]]


def _plain_question(question: Question) -> tuple[Any, ...]:
    answers = [(answer.text, answer.start) for answer in question.answers]
    plain = (question.id, question.text, answers)
    if question.golds == tuple(answer.text for answer in question.answers):
        return plain
    return (*plain, question.golds)
