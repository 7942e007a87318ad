"""Figures of calibration equal scikit-learn's, and sums written out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from loraqa.analysis.calibration_figures import auroc, brier, ece, reliability, risk_coverage

# Tenths, so that ties and the edges of bins are common.
CONFIDENCE = st.integers(0, 10).map(lambda tenth: tenth / 10) | st.floats(0, 1)
ANSWERS = st.lists(st.tuples(CONFIDENCE, st.integers(0, 1)), min_size=1, max_size=60)


def columns(answers: list[tuple[float, int]]) -> tuple[list[float], list[int]]:
    return [confidence for confidence, _ in answers], [right for _, right in answers]


@given(ANSWERS)
def test_brier_is_scikit_learns(answers: list[tuple[float, int]]) -> None:
    confidence, right = columns(answers)
    expected = brier_score_loss(right, confidence, pos_label=1)
    assert brier(confidence, right) == pytest.approx(expected)


def test_reliability_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    confidence = random.random(500)
    right = random.random(500) < confidence
    share, mean = calibration_curve(right, confidence, n_bins=7)
    bins = reliability(confidence, right, bins=7)
    assert [each.right for each in bins] == pytest.approx(share)
    assert [each.confidence for each in bins] == pytest.approx(mean)
    assert sum(each.count for each in bins) == 500


@given(ANSWERS)
def test_each_answer_is_in_the_bin_of_its_confidence(answers: list[tuple[float, int]]) -> None:
    confidence, right = columns(answers)
    bins = reliability(confidence, right, bins=4)
    for each in bins:
        closed = each.high == 1
        inside = [
            (c, r) for c, r in answers if each.low <= c < each.high or (closed and c == each.high)
        ]
        assert each.count == len(inside) > 0
        assert each.right == pytest.approx(sum(r for _, r in inside) / len(inside))
    assert sum(each.count for each in bins) == len(answers)


def test_ece_of_answers_by_hand() -> None:
    # Bin 0.1: two answers, confidence 0.1, half right. Bin 0.9: two answers, all right.
    assert ece([0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1]) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)


def test_confidence_that_fits_has_no_error() -> None:
    assert ece([0.25] * 4 + [1.0] * 3, [1, 0, 0, 0, 1, 1, 1]) == 0


@given(ANSWERS)
def test_risk_at_every_threshold_is_the_share_of_wrong_answers(
    answers: list[tuple[float, int]],
) -> None:
    coverage, risk = risk_coverage(*columns(answers))
    thresholds = sorted({confidence for confidence, _ in answers}, reverse=True)
    kept = [[right for c, right in answers if c >= threshold] for threshold in thresholds]
    assert coverage == pytest.approx([len(each) / len(answers) for each in kept])
    assert risk == pytest.approx([each.count(0) / len(each) for each in kept])


@given(ANSWERS)
def test_auroc_counts_pairs(answers: list[tuple[float, int]]) -> None:
    right = [confidence for confidence, is_right in answers if is_right]
    wrong = [confidence for confidence, is_right in answers if not is_right]
    if not right or not wrong:
        assert auroc(*columns(answers)) is None
        return
    won = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    assert auroc(*columns(answers)) == pytest.approx(won / len(right) / len(wrong))
    confidence, is_right = columns(answers)
    assert auroc(confidence, is_right) == pytest.approx(roc_auc_score(is_right, confidence))


@pytest.mark.parametrize("figure", [reliability, ece, brier, auroc, risk_coverage])
@pytest.mark.parametrize(
    ("confidence", "right"),
    [([], []), ([0.5], [1, 0]), ([1.5], [1]), ([float("nan")], [1]), ([0.5], [0.5])],
)
def test_other_values_are_refused(
    figure: Callable[..., Any], confidence: list[float], right: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"\bis\b|are no shapes"):
        figure(confidence, right)
