"""The confidence of an answer: the calibrated probability that it is right.

A model's own probability is too high or too low, but it orders answers well. So confidence is a
rising function of it with three numbers (beta calibration; Kull, Silva Filho and Flach 2017), which
leaves the order of answers as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from loraqa.adapter.info import BetaCurve, Calibration
from loraqa.answer.answered import Answered

# Probabilities closer to 0 and 1 than this say nothing more.
_LEAST = 1e-6


def with_confidence(answer: Answered, calibration: Calibration) -> Answered:
    """Return the answer with its confidence, if spans were searched."""
    own = answer.span_probability
    if own is None:
        return answer
    curve = calibration.answer if answer.text else calibration.no_answer
    if curve is None:
        return answer
    probability = own if answer.text else answer.no_answer_probability
    return replace(answer, confidence=value_at(probability, curve))


def value_at(probability: float, curve: BetaCurve) -> float:
    """Return the value of a curve, from 0 to 1, at a probability."""
    rising, falling = _logs([probability])[0]
    z = curve.a * rising + curve.b * falling + curve.c
    return math.exp(-float(np.logaddexp(0, -z)))


def fit_beta(probabilities: Sequence[float], right: Sequence[float]) -> BetaCurve | None:
    """Fit how right answers are, by their probabilities; return None if it does not rise with them.

    Nor can it be fitted if all are right, or all are wrong.

    Args:
        probabilities: (n,) from 0 to 1.
        right: (n,) from 0, wrong, to 1, right; an answer between them is partly right.
    """
    logs, weights = _logs(probabilities), np.asarray(right, dtype=np.float64)
    if not 0 < weights.sum() < len(weights):
        return None
    slopes, intercept = _fit_logistic(logs, weights)
    if slopes[0] <= 0:
        # Without ln p the least confidence would be far from 0. So one slope is fitted for both:
        # that of the log-odds.
        slope, intercept = _fit_logistic(logs.sum(axis=1, keepdims=True), weights)
        slopes = np.repeat(slope, 2)
    elif slopes[1] < 0:
        # A curve must not fall, so only what rises is used, as in the paper.
        slopes, intercept = _fit_logistic(logs * [1, 0], weights)
    if slopes[0] <= 0:
        return None
    return BetaCurve(a=float(slopes[0]), b=float(slopes[1]), c=intercept)


def _logs(probabilities: Sequence[float]) -> NDArray[np.float64]:
    """Return ln p and -ln(1 - p), (n, 2), which are finite and rise with p."""
    inside = np.clip(np.asarray(probabilities, dtype=np.float64), _LEAST, 1 - _LEAST)
    return np.stack([np.log(inside), -np.log1p(-inside)], axis=1)


def _fit_logistic(
    numbers: NDArray[np.float64], right: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return slopes, (k,), and intercept of a logistic function of some numbers, (n, k)."""
    # Loading scikit-learn takes a second.
    from sklearn.linear_model import LogisticRegression

    # An answer that is partly right counts as one that is right and one that is wrong, by weight.
    twice, labels = np.concatenate([numbers, numbers]), np.repeat([1, 0], len(right))
    weights = np.concatenate([right, 1 - right])
    fitted = LogisticRegression().fit(twice, labels, sample_weight=weights)
    return fitted.coef_[0], float(fitted.intercept_[0])
