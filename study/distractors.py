"""Distractors by rule: sentences that look like the answer to a question and are not.

Jia and Liang (2017, "Adversarial Examples for Evaluating Reading Comprehension Systems") had people
write sentences with the words of a question about something else. Here the sentence of an answer is
taken, and the names and numbers that the question mentions, and the answer, become others.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraqa.analysis.error_kinds import entity_of
from loraqa.analysis.sentences import sentence_at, sentences
from loraqa.squad import Passage, Question, normalize_answer
from loraqa.squad.segmentation import words

Pool = Mapping[str, Sequence[str]]
"""Texts by their kind, which only texts that could stand for one another share."""


def with_distractors(
    passages: Sequence[Passage], share: float = 0.5, seed: int = 0
) -> list[Passage]:
    """Add a distractor to a share of the contexts, between two sentences or at an end.

    Args:
        passages: contexts with questions that have answers.
        share: which share of the contexts gets one, if a rule finds one.
        seed: random seed of the choices.
    """
    random = np.random.default_rng(seed)
    maker = _Maker(_entities(passages), _answers(passages), random)
    return [
        maker.distracted(passage) if random.random() < share else passage for passage in passages
    ]


def _entities(passages: Sequence[Passage]) -> Pool:
    """Return the names and numbers that questions mention."""
    mentioned = (word for p in passages for q in p.questions for word in _mentioned(q.text))
    return _by_kind(mentioned)


def _answers(passages: Sequence[Passage]) -> Pool:
    return _by_kind(answer.text for p in passages for q in p.questions for answer in q.answers)


def _by_kind(texts: Iterator[str]) -> Pool:
    pool: dict[str, dict[str, None]] = defaultdict(dict)
    for text in texts:
        pool[_kind(text)][text] = None
    return {kind: list(found) for kind, found in pool.items()}


def _kind(text: str) -> str:
    """Return "date", "number" or "name", or else how long the text is."""
    return entity_of(text) or f"{len(words(text))} words"


def _mentioned(question: str) -> list[str]:
    """Return the names and numbers of a question; its first word has a capital in any case."""
    written = [question[start:end] for start, end in words(question)]
    return [word for word in written[1:] if entity_of(word)]


def _replaced(text: str, others: Mapping[str, str]) -> str:
    """Return the text with other words in the place of some."""
    parts: list[str] = []
    done = 0
    for start, end in words(text):
        if other := others.get(text[start:end]):
            parts += text[done:start], other
            done = end
    return "".join([*parts, text[done:]])


@dataclass(frozen=True)
class _Maker:
    """Makes distractors from what other questions mention and how they are answered."""

    entities: Pool
    answers: Pool
    random: np.random.Generator

    def distracted(self, passage: Passage) -> Passage:
        """Return the passage with a distractor for one of its questions, if there is any."""
        for index in self.random.permutation(len(passage.questions)):
            sentence = self._distractor(passage, passage.questions[index])
            if sentence:
                return self._inserted(passage, sentence)
        return passage

    def _distractor(self, passage: Passage, question: Question) -> str | None:
        if not question.answers:
            return None
        answer = question.answers[0]
        start, end = sentence_at(passage.context, answer.start)
        if answer.end > end:
            return None
        around = passage.context[start : answer.start], passage.context[answer.end : end]
        others = self._other_names(around, question)
        false = self._other(answer.text, self.answers)
        if not others or not false:
            return None
        if normalize_answer(false) in normalize_answer(passage.context):
            return None
        before, after = (_replaced(text, others) for text in around)
        return f"{before}{false}{after}".strip()

    def _other_names(self, texts: Sequence[str], question: Question) -> dict[str, str]:
        """Return another name for each that the question and the texts mention, if there is one."""
        written = {text[slice(*span)] for text in texts for span in words(text)}
        names = (name for name in _mentioned(question.text) if name in written)
        pairs = {name: self._other(name, self.entities) for name in names}
        return {name: other for name, other in pairs.items() if other}

    def _other(self, text: str, pool: Pool) -> str | None:
        """Return another text of the same kind."""
        others = [other for other in pool.get(_kind(text), ()) if other != text]
        return others[self.random.integers(len(others))] if others else None

    def _inserted(self, passage: Passage, sentence: str) -> Passage:
        """Insert a sentence where one begins, or at the end; no answer is cut in two."""
        context = passage.context
        answers = [answer for question in passage.questions for answer in question.answers]
        places = [
            place
            for place in (*(start for start, _ in sentences(context)), len(context))
            if not any(answer.start < place < answer.end for answer in answers)
        ]
        place = places[self.random.integers(len(places))]
        # Sentences keep the blank that follows them, except the last one.
        added = f" {sentence}" if place == len(context) else f"{sentence} "
        questions = tuple(
            replace(
                question,
                answers=tuple(
                    replace(answer, start=answer.start + len(added) * (answer.start >= place))
                    for answer in question.answers
                ),
            )
            for question in passage.questions
        )
        return replace(
            passage, context=context[:place] + added + context[place:], questions=questions
        )
