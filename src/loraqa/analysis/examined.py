"""Questions of an evaluation with the kind of their error and the slices that they are in."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loraqa.analysis.error_kinds import KINDS, kind_of
from loraqa.analysis.outcome import Asked, Outcome
from loraqa.analysis.slices import labels_of


@dataclass(frozen=True, slots=True)
class Examined:
    """A question of an evaluation.

    Attributes:
        asked: the question, its golds and answers.
        context: the text that it is about.
        kind: the kind of its error, or "right".
        labels: dimension to the label of its slice.
    """

    asked: Asked
    context: str
    kind: str
    labels: dict[str, str]


def examine(outcome: Outcome) -> list[Examined]:
    """Return all questions of an evaluation, in their order."""
    return [_examined(outcome.contexts[asked.context], asked) for asked in outcome.questions]


def counts_of_kinds(questions: Sequence[Examined]) -> dict[str, int]:
    """Return the number of questions of each kind, of "right" too."""
    counts = Counter(question.kind for question in questions)
    return {kind: counts[kind] for kind in KINDS}


def _examined(context: str, asked: Asked) -> Examined:
    return Examined(asked, context, kind_of(context, asked), labels_of(context, asked))
