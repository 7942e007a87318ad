"""The epochs and steps of a run, the learning rate of each step, and when the model is scored."""

import math
from itertools import accumulate, count

from loraqa.prompt.plan import Plan
from loraqa.train.settings import EvaluationSettings, OptimisationSettings

FEWEST_EPOCHS = 2
"""Epochs of a run whose settings name no number, unless its questions are few."""

# Few questions need more epochs, because few steps leave a model hardly trained; how many was
# measured (docs/quality.md).
_MOST_EPOCHS = 10
_ENOUGH_STEPS = 40


def total_epochs(plan: Plan, settings: OptimisationSettings) -> int:
    """Return the number of epochs that are begun, were it not for `max_steps` before their end.

    It is that of the settings; or else as many as make `max_steps`; or else two, or as many more as
    make 40 steps, but ten at most.
    """
    if settings.epochs is not None:
        return settings.epochs
    if settings.max_steps is not None:
        return _epochs_for(plan, settings.max_steps)
    return max(min(_epochs_for(plan, _ENOUGH_STEPS), _MOST_EPOCHS), FEWEST_EPOCHS)


def _epochs_for(plan: Plan, steps: int) -> int:
    """Return the fewest epochs that make so many steps."""
    done = accumulate(map(plan.steps_in, count()))
    return next(epochs for epochs, made in enumerate(done, 1) if made >= steps)


def total_steps(plan: Plan, settings: OptimisationSettings) -> int:
    """Return the number of optimizer steps of the run.

    Epochs may differ in length, because steps take whole passages and the order is shuffled.
    """
    steps = sum(plan.steps_in(epoch) for epoch in range(total_epochs(plan, settings)))
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
