"""How well the model's own probabilities, and its calibrated confidence, fit the answers."""

from typing import Any

from loraqa.analysis.calibration_figures import auroc, brier, ece
from loraqa.analysis.outcome import Outcome
from loraqa.report.errors import probability
from loraqa.report.plots import Confidences
from loraqa.report.tables import Column, Table

PROBABILITY = "probability of the answer"
CONFIDENCE = "calibrated confidence"


def confidences(outcome: Outcome) -> Confidences:
    """Return the probabilities of the answers and, if the model was calibrated, their confidence.

    An answer is right if its exact match is 1.
    """
    given = [(asked.given, asked.exact_match == 1) for asked in outcome.questions]
    own = [(probability(answer), right) for answer, right in given]
    calibrated = [
        (answer.confidence, right) for answer, right in given if answer.confidence is not None
    ]
    found = {PROBABILITY: own, CONFIDENCE: calibrated}
    return {
        name: ([number for number, _ in pairs], [right for _, right in pairs])
        for name, pairs in found.items()
        if pairs
    }


def figures(given: Confidences) -> dict[str, dict[str, Any]]:
    """Return the figures of each kind of confidence as plain JSON values."""
    return {
        name: {
            "answers": len(numbers),
            "ece": ece(numbers, right),
            "brier": brier(numbers, right),
            "auroc": auroc(numbers, right),
        }
        for name, (numbers, right) in given.items()
    }


def calibration_table(given: Confidences) -> Table:
    """Return a table of the figures."""
    columns = (
        Column("confidence"),
        Column("answers", ",d"),
        Column("ECE", ".3f"),
        Column("Brier", ".3f"),
        Column("AUROC", ".3f"),
    )
    rows = tuple((name, *values.values()) for name, values in figures(given).items())
    return Table("Calibration", columns, rows)
