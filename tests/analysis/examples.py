"""Outcomes of evaluations, made by hand."""

from collections.abc import Sequence

from loraqa.analysis.outcome import Asked, Candidate, Outcome, golds_of
from loraqa.squad import Answer, Question, score_question

CONTEXT = (
    "The mill was built by Ruth Olen in 1203. Its owner, John Smith, died in May 1250. "
    "Two hundred people live there. The river Aune is cold."
)


def asked(
    question: str,
    golds: Sequence[str],
    given: str,
    context: str = CONTEXT,
    *,
    id: str = "q",
    number: int = 0,
    place: int | None = None,
) -> Asked:
    """A question whose golds and answer stand where they first occur; `place` is the answer's."""
    answers = tuple(Answer(gold, context.index(gold)) for gold in golds if gold in context)
    made = Question(id, question, answers, tuple(golds))
    score = score_question(given, made, "2.0")
    found = context.find(given) if place is None else place
    start, end = (found, found + len(given)) if given and found >= 0 else (None, None)
    candidate = Candidate(given, start, end, -0.5)
    return Asked(
        id, number, question, golds_of(made), (candidate,), 0.1, score.exact_match, score.f1
    )


def outcome(
    questions: Sequence[Asked], contexts: Sequence[str] = (CONTEXT,), model: str = "runs/one"
) -> Outcome:
    """An evaluation with these questions."""
    total = len(questions)
    scores = {
        "exact_match": 100 * sum(each.exact_match for each in questions) / max(total, 1),
        "f1": 100 * sum(each.f1 for each in questions) / max(total, 1),
        "total": total,
        "seconds": 2.0,
        "questions_per_second": total / 2,
    }
    return Outcome(
        command=f"loraqa evaluate {model} --data dev.json",
        model=model,
        base={"source": "models/base", "sha256": "ab" * 32},
        data={"source": "dev.json", "version": "2.0", "sha256": "cd" * 32, "questions": total},
        strategy="span",
        scores=scores,
        contexts=tuple(contexts),
        questions=tuple(questions),
    )


def some_questions(given: Sequence[str] = ("Ruth Olen", "1250", "people", "")) -> list[Asked]:
    """Four questions, the last without an answer, with the given answers."""
    return [
        asked("Who built the mill?", ["Ruth Olen"], given[0], id="a"),
        asked("When was it built?", ["1203", "in 1203"], given[1], id="b"),
        asked("How many people live there?", ["Two hundred"], given[2], id="c"),
        asked("What does it cost?", [], given[3], id="d"),
    ]
