"""Show answers on a terminal, each with its question and the surrounding context."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from loraqa.answer.reader import Answered
from loraqa.report.tables import printable

if TYPE_CHECKING:
    from rich.text import Text

# Number of characters of context shown on each side of an answer.
_AROUND = 60


def answer_lines(
    context: str, questions: Sequence[str], answers: Sequence[Answered]
) -> Iterator["Text"]:
    """Yield lines for a `rich` console: question, answer with its probability, and its place."""
    from rich.text import Text

    for question, answer in zip(questions, answers, strict=True):
        yield Text(printable(question), "bold")
        probability = math.exp(answer.log_probability)
        text = printable(answer.text) or "no answer"
        yield Text.assemble("  ", (text, "green"), (f"  probability {probability:.2f}", "dim"))
        yield _place(context, answer)


def _place(context: str, answer: Answered) -> "Text":
    from rich.text import Text

    if answer.start is None or answer.end is None:
        return Text("  not in the context" if answer.text else "", "dim")
    first, last = max(answer.start - _AROUND, 0), answer.end + _AROUND
    before = ("…" if first else "") + _one_line(context[first : answer.start])
    after = _one_line(context[answer.end : last]) + ("…" if last < len(context) else "")
    return Text.assemble(
        (f"  characters {answer.start} to {answer.end}: {before}", "dim"),
        (_one_line(context[answer.start : answer.end]), "green underline"),
        (after, "dim"),
    )


def _one_line(text: str) -> str:
    """Like `printable`, but keep one blank at each end, because other text adjoins it."""
    left = " " if text[:1].isspace() else ""
    right = " " if text[-1:].isspace() else ""
    return left + printable(text) + right
