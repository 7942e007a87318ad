"""Comparisons of decoding strategies for tests, with figures that a test chooses."""

from dataclasses import replace
from typing import Any

from loraqa.analysis.significance import Estimate
from loraqa.answer.compare import BEST, ONE, ORACLE, RISK, VOTE, Choice, Comparison, OfSamples


def estimate(mean: float, width: float = 2.0) -> Estimate:
    return Estimate(mean, mean - width, mean + width)


def choice(name: str, f1: float, **changes: Any) -> Choice:
    same = Choice(name, estimate(f1 - 10), estimate(f1), None, None, None)
    return replace(same, **changes)


def searched(strategy: str, f1: float = 60.06, **changes: Any) -> Comparison:
    """A strategy that finds one answer."""
    same = Comparison(
        strategy=strategy,
        draws=False,
        questions=1234,
        contexts=300,
        samples=1,
        choices=(choice(BEST, f1),),
        by_samples=(),
        found=0.9,
        distinct=1.0,
        entropy=0.0,
        distinct_1=1.0,
        distinct_2=1.0,
        self_bleu=None,
        tokens=3.5,
        seconds=123.4,
    )
    return replace(same, **changes)


def drawn(strategy: str, f1: float = 60.06, **changes: Any) -> Comparison:
    """A strategy that draws five samples."""
    same = replace(
        searched(strategy),
        draws=True,
        samples=5,
        choices=(
            choice(ONE, f1),
            choice(VOTE, f1 + 2),
            choice(RISK, f1 + 3),
            choice(ORACLE, f1 + 20),
        ),
        by_samples=(OfSamples(1, f1, f1, f1, 1.0), OfSamples(5, f1 + 2, f1 + 3, f1 + 20, 2.345)),
        distinct=2.345,
        entropy=0.5,
        distinct_1=0.41,
        distinct_2=0.52,
        self_bleu=63.2,
        tokens=17.5,
    )
    return replace(same, **changes)
