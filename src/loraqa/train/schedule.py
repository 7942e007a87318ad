"""The optimizer steps of a run, the learning rate of each, and when the model is scored."""

import math

from loraqa.prompt.plan import Plan
from loraqa.train.settings import EvaluationSettings, OptimisationSettings


def total_steps(plan: Plan, settings: OptimisationSettings) -> int:
    """Return the number of optimizer steps of the run.

    Epochs may differ in length, because steps take whole passages and the order is shuffled.
    """
    steps = sum(plan.steps_in(epoch) for epoch in range(settings.epochs))
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def scoring_steps(total: int, settings: EvaluationSettings) -> list[int]:
    """Return after which of `total` steps the model is scored; 0 is before the first one."""
    return [*range(0, total, settings.every), total]


def learning_rate(step: int, total: int, settings: OptimisationSettings) -> float:
    """Return the learning rate of step 0 ≤ `step` < `total`.

    It rises linearly to its peak in the last step of the warm-up, then follows the schedule. Unless
    the schedule is constant, it would reach 0 in the step after the last.
    """
    warmup = round(settings.warmup * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    share = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
    }
    return settings.learning_rate * share[settings.schedule]
