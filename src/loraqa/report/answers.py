"""Show answers on a terminal, each with its question and the surrounding context."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loraqa.answer.answered import Answered
from loraqa.documents import Document
from loraqa.report.tables import printable

if TYPE_CHECKING:
    from rich.text import Text

# Number of characters of context shown on each side of an answer.
_AROUND = 60
# From this probability on, "no answer" is named beside the best answer.
_NOTABLE = 0.05


def answer_lines(
    document: Document, questions: Sequence[str], candidates: Sequence[Sequence[Answered]]
) -> Iterator["Text"]:
    """Yield lines for a `rich` console: each question, and its answers with their places."""
    from rich.text import Text

    for question, answers in zip(questions, candidates, strict=True):
        yield Text(printable(question), "bold")
        for rank, answer in enumerate(answers):
            yield _answer(answer, is_best=rank == 0)
            if place := _place(document, answer):
                yield place


def answers_json(
    document: Document, candidates: Sequence[Sequence[Answered]], count: int
) -> dict[str, Any]:
    """Return the best answer to each question, and if `count` is more than 1, all candidates.

    Each has the number of the page where it starts, from 1; None if the document has no pages.
    """
    listed = [
        [asdict(answer) | {"page": document.page_at(answer.start)} for answer in answers]
        for answers in candidates
    ]
    best = {"answers": [first for first, *_ in listed]}
    return best | {"candidates": listed} if count > 1 else best


def _is_doubtful(answer: Answered) -> bool:
    """Whether the best answer is more probably wrong than right.

    Without a calibrated confidence, "no answer" tells it: it is more probable than the answer.
    """
    if answer.confidence is not None:
        return answer.confidence < 0.5
    return answer.text != "" and answer.no_answer_probability > 0.5


def _answer(answer: Answered, is_best: bool) -> "Text":
    from rich.text import Text

    facts, doubted = f"  {_trust(answer)}", is_best and _is_doubtful(answer)
    if doubted:
        facts += ", probably wrong"
    if is_best and answer.text and answer.no_answer_probability >= _NOTABLE:
        facts += f', "no answer" {answer.no_answer_probability:.2f}'
    if answer.votes > 1:
        facts += f", {answer.votes} votes"
    if answer.exact is False:
        facts += (
            f"; the search stopped after {answer.paths:,} paths and may have missed a better one"
        )
    text = printable(answer.text) or "no answer"
    return Text.assemble("  ", (text, "yellow" if doubted else "green"), (facts, "dim"))


def _trust(answer: Answered) -> str:
    """Name the confidence; of a model that was not calibrated, the share among spans, if known."""
    if answer.confidence is not None:
        return f"confidence {answer.confidence:.2f}"
    if not answer.text:
        return f"probability {answer.no_answer_probability:.2f} against the best answer"
    return f"own probability {_score(answer)}, not calibrated"


def _score(answer: Answered) -> str:
    if answer.probability_at_least is None or answer.probability_at_most is None:
        return f"{math.exp(answer.log_probability):.2f}"
    if answer.probability_at_most < 0.005:
        return "below 0.01"
    least, most = f"{answer.probability_at_least:.2f}", f"{answer.probability_at_most:.2f}"
    return least if least == most else f"{least} to {most}"


def _place(document: Document, answer: Answered) -> "Text":
    from rich.text import Text

    context, page = document.text, document.page_at(answer.start)
    if answer.start is None or answer.end is None:
        return Text("  not in the context" if answer.text else "", "dim")
    first, last = max(answer.start - _AROUND, 0), answer.end + _AROUND
    before, after = _one_line(context[first : answer.start]), _one_line(context[answer.end : last])
    before = f"…{before}" if first else before.lstrip()
    after = f"{after}…" if last < len(context) else after.rstrip()
    place = f"page {page}, " if page else ""
    return Text.assemble(
        (f"  {place}characters {answer.start} to {answer.end}: {before}", "dim"),
        (_one_line(context[answer.start : answer.end]), "green underline"),
        (after, "dim"),
    )


def _one_line(text: str) -> str:
    """Like `printable`, but keep one blank at each end, because other text adjoins it."""
    left = " " if text[:1].isspace() else ""
    right = " " if text[-1:].isspace() else ""
    return left + printable(text) + right
