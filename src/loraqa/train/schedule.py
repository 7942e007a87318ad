"""How many optimizer steps a run has, and the learning rate of each."""

import math

from loraqa.prompt.plan import BatchPlan
from loraqa.train.settings import OptimisationSettings


def total_steps(plan: BatchPlan, settings: OptimisationSettings) -> int:
    """Optimizer steps of the whole run. Epochs differ in length: passages differ in questions."""
    steps = sum(plan.steps_in(epoch) for epoch in range(settings.epochs))
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def learning_rate(step: int, total: int, settings: OptimisationSettings) -> float:
    """Learning rate of step 0 ≤ `step` < `total`.

    It rises in a line to its peak at the warm-up's last step; then it falls as the schedule says
    to 0, which the step after the last would have.
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
