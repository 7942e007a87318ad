"""The scores of an adapter at a step of its training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """Scores on the dev sample after `step` optimizer steps, in percent of `total` questions."""

    step: int
    exact_match: float
    f1: float
    total: int
