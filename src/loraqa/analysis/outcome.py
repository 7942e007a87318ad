"""What an evaluation gave: every question with its golds, its answers and its score.

It is kept as JSON, so that reports and comparisons can be made later, without the model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraqa.errors import InputError
from loraqa.files import make_folder, read_json, write_text
from loraqa.squad import Question

FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Gold:
    """An annotator's answer, and where it starts in the context; None if it has no place."""

    text: str
    start: int | None

    @property
    def end(self) -> int | None:
        """Character offset just past the gold."""
        return None if self.start is None else self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that the model found.

    Attributes:
        text: the answer; empty for "no answer".
        start, end: where it stands in the context; None if it does not.
        log_probability: ln p of its tokens and its end, in nats.
        confidence: the calibrated probability that it is right; None if the model was not
            calibrated.
    """

    text: str
    start: int | None
    end: int | None
    log_probability: float
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and what became of it.

    Attributes:
        id: the question's id.
        context: number of its context.
        question: the question.
        golds: the annotators' answers; none if the context does not answer the question.
        candidates: the answers that were searched for, best first; the first one was given.
        no_answer_probability: the probability of "no answer" against the best answer.
        exact_match: 1 if the given answer equals a gold after normalization, else 0.
        f1: word-level F1 with the closest gold, from 0 to 1.
    """

    id: str
    context: int
    question: str
    golds: tuple[Gold, ...]
    candidates: tuple[Candidate, ...]
    no_answer_probability: float
    exact_match: float
    f1: float

    @property
    def given(self) -> Candidate:
        """The answer that was given."""
        return self.candidates[0]

    @property
    def answerable(self) -> bool:
        """Whether the context answers the question."""
        return bool(self.golds)


@dataclass(frozen=True)
class Outcome:
    """The outcome of an evaluation.

    Attributes:
        command: the command that answered.
        model: the run, adapter or model that answered.
        base: its base model with its fingerprints, as `BaseInfo` gives them; empty if unknown.
        data: source, version, fingerprint and counts of the data.
        strategy: name of the decoding strategy.
        scores: the official scores and the speed, as `Evaluated.to_json` gives them.
        contexts: the contexts.
        questions: all questions, in the order of the contexts.
    """

    command: str
    model: str
    base: Mapping[str, Any]
    data: Mapping[str, Any]
    strategy: str
    scores: Mapping[str, Any]
    contexts: tuple[str, ...]
    questions: tuple[Asked, ...]

    def save(self, folder: Path) -> None:
        """Write the outcome into a folder, which is made if it is missing."""
        text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)
        make_folder(folder)
        write_text(folder / FILE, f"{text}\n")

    @classmethod
    def load(cls, folder: Path) -> "Outcome":
        """Read the outcome in a folder.

        Raises:
            InputError: there is no such folder, it holds none, or the file is damaged.
        """
        path = folder / FILE
        if not folder.exists():
            raise InputError(f"{folder} does not exist; check the path.")
        if not path.exists():
            raise InputError(
                f"{folder} holds no evaluation; make one with `loraqa evaluate {folder} --data …`."
            )
        value = read_json(path)
        try:
            questions = tuple(map(_asked, value.pop("questions")))
            return cls(contexts=tuple(value.pop("contexts")), questions=questions, **value)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(
                f"{path} is not what `loraqa evaluate` writes; evaluate again."
            ) from None


def golds_of(question: Question) -> tuple[Gold, ...]:
    """Return the golds of a question: first those with a place, then the others."""
    placed = [Gold(answer.text, answer.start) for answer in question.answers]
    texts = {gold.text for gold in placed}
    return (*placed, *(Gold(text, None) for text in question.golds if text not in texts))


def _asked(value: dict[str, Any]) -> Asked:
    golds = tuple(Gold(**gold) for gold in value.pop("golds"))
    candidates = tuple(Candidate(**each) for each in value.pop("candidates"))
    if not candidates:
        raise ValueError("a question without an answer")
    return Asked(golds=golds, candidates=candidates, **value)
