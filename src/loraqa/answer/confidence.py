"""The confidence of an answer: the calibrated probability that it is right.

A model's own probability is too high or too low, but it orders answers well. So confidence is a
logistic function, with two numbers, of the log-odds of that probability (Platt 1999). It leaves the
order of answers as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loraqa.adapter.info import Calibration, Logistic
from loraqa.answer.answered import Answered

# Probabilities closer to 0 and 1 than this say nothing more.
_LEAST = 1e-6


def with_confidence(answer: Answered, calibration: Calibration) -> Answered:
    """Return the answer with its confidence, if spans were searched."""
    own = share(answer)
    if own is None:
        return answer
    fitted = calibration.answer if answer.text else calibration.no_answer
    probability = own if answer.text else answer.no_answer_probability
    if fitted is None:
        return answer
    z = fitted.slope * log_odds(probability) + fitted.intercept
    return replace(answer, confidence=math.exp(-float(np.logaddexp(0, -z))))


def share(answer: Answered) -> float | None:
    """Return the middle of the bounds of an answer's share; None if no spans were searched."""
    least, most = answer.probability_at_least, answer.probability_at_most
    return None if least is None or most is None else (least + most) / 2


def log_odds(probability: float) -> float:
    """Return ln(p / (1 - p)), which is finite."""
    inside = min(max(probability, _LEAST), 1 - _LEAST)
    return math.log(inside / (1 - inside))


def fit_logistic(log_odds: Sequence[float], right: Sequence[bool]) -> Logistic | None:
    """Fit the probability of being right; return None if it does not rise with the log-odds.

    Nor can it be fitted if all are right, or all are wrong.
    """
    # Loading scikit-learn takes a second.
    from sklearn.linear_model import LogisticRegression

    if len(set(right)) < 2:
        return None
    fitted = LogisticRegression().fit(np.reshape(log_odds, (-1, 1)), right)
    slope = float(fitted.coef_[0, 0])
    return Logistic(slope=slope, intercept=float(fitted.intercept_[0])) if slope > 0 else None
