"""Slices and kinds of errors of an evaluation: tables, a CSV file, and the error browser's data."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loraqa.analysis.error_kinds import KINDS, RIGHT
from loraqa.analysis.examined import Examined, counts_of_kinds
from loraqa.analysis.outcome import Candidate
from loraqa.analysis.scores import Slice
from loraqa.analysis.significance import Estimate
from loraqa.analysis.slices import DIMENSIONS
from loraqa.errors import counted, shortened
from loraqa.report.tables import Column, Table

FEWEST_CONTEXTS = 10
"""With fewer contexts no interval is shown: one by bootstrap would be much too narrow."""

FEWEST_CONTEXTS_TO_CLAIM = 20
"""With fewer contexts, intervals are still too narrow to claim a difference."""


# How many wrong answers are shown before all else.
_EXAMPLES = 5
# The most characters of a text there.
_LONGEST = 200


def wrong_answers_table(questions: Sequence[Examined]) -> Table:
    """Return a table of the wrong answers of which the model was most sure."""
    wrong = [question for question in questions if question.kind != RIGHT]
    surest = sorted(wrong, key=lambda question: -_sureness(question.asked.given))[:_EXAMPLES]
    columns = (Column("kind"), Column("question"), Column("answer"), Column("gold"))
    return Table("Wrong answers", columns, tuple(map(_wrong_answer, surest)))


def _wrong_answer(question: Examined) -> tuple[str, ...]:
    asked = question.asked
    golds = " / ".join(dict.fromkeys(gold.text for gold in asked.golds))
    texts = (asked.question, asked.given.text or "no answer", golds or "no answer")
    return question.kind, *(shortened(text, _LONGEST) for text in texts)


def _sureness(answer: Candidate) -> float:
    return probability(answer) if answer.confidence is None else answer.confidence


def kinds_table(questions: Sequence[Examined]) -> Table:
    """Return a table of how many questions have which kind of error."""
    counts = counts_of_kinds(questions)
    total = sum(counts.values())
    rows = tuple((kind, count, count / total) for kind, count in counts.items())
    columns = (Column("kind"), Column("questions", ",d"), Column("share", ".1%"))
    return Table("Kinds of errors", columns, rows)


def slices_tables(found: list[Slice]) -> list[Table]:
    """Return a table for each dimension, whose title is the dimension's name."""
    return [
        Table(
            dimension.name,
            (
                Column("questions with"),
                Column("number", ",d"),
                Column("EM", ".1f"),
                Column("F1", ".1f"),
                Column("EM, 95%"),
                Column("F1, 95%"),
            ),
            tuple(
                (
                    each.label,
                    each.questions,
                    each.exact_match.mean,
                    each.f1.mean,
                    interval_cell(each.exact_match, each.contexts),
                    interval_cell(each.f1, each.contexts),
                )
                for each in found
                if each.dimension == dimension.name
            ),
        )
        for dimension in DIMENSIONS
    ]


def interval_text(estimate: Estimate, sign: str = "") -> str:
    """Return an interval as text, to a tenth."""
    return f"{estimate.low:{sign}.1f} to {estimate.high:{sign}.1f}"


def interval_cell(estimate: Estimate, contexts: int, sign: str = "") -> str:
    """Return an interval as text; if the contexts are too few for one, their number."""
    if contexts < FEWEST_CONTEXTS:
        return f"only {counted(contexts, 'context')}"
    return interval_text(estimate, sign)


def questions_csv(questions: Sequence[Examined]) -> str:
    """Return a CSV file with a line for each question: answer, golds, scores, kind and slices."""
    text = io.StringIO()
    rows = list(map(_row, questions))
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def browser_data(contexts: Sequence[str], questions: Sequence[Examined]) -> dict[str, Any]:
    """Return what the error browser shows, as plain JSON values.

    Kinds and slices are numbers: their places in the lists of all kinds and labels.
    """
    return {
        "kinds": KINDS,
        "dimensions": [{"name": each.name, "labels": each.labels} for each in DIMENSIONS],
        "contexts": contexts,
        "questions": list(map(_shown, questions)),
    }


def probability(candidate: Candidate) -> float:
    """Return the probability of an answer; rounding may put its logarithm just above 0."""
    return min(math.exp(candidate.log_probability), 1.0)


def _row(question: Examined) -> dict[str, Any]:
    asked = question.asked
    return {
        "id": asked.id,
        "question": asked.question,
        "answer": asked.given.text,
        "golds": " | ".join(dict.fromkeys(gold.text for gold in asked.golds)),
        "kind": question.kind,
        "exact_match": asked.exact_match,
        "f1": asked.f1,
        "confidence": asked.given.confidence,
        "probability": probability(asked.given),
        "no_answer_probability": asked.no_answer_probability,
        "start": asked.given.start,
        "end": asked.given.end,
        "context": asked.context,
        **question.labels,
    }


def _shown(question: Examined) -> dict[str, Any]:
    asked, labels = question.asked, question.labels
    return {
        "id": asked.id,
        "context": asked.context,
        "question": asked.question,
        "golds": [asdict(gold) | {"end": gold.end} for gold in asked.golds],
        "answers": [
            {
                "text": each.text,
                "start": each.start,
                "end": each.end,
                "probability": round(probability(each), 4),
                "confidence": each.confidence,
            }
            for each in asked.candidates
        ],
        "noAnswer": round(asked.no_answer_probability, 4),
        "f1": round(asked.f1, 4),
        "kind": KINDS.index(question.kind),
        "slices": [each.labels.index(labels[each.name]) for each in DIMENSIONS],
    }
