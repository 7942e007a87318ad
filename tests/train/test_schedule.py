"""The learning rate of each step, against transformers' schedules."""

from typing import Any

import pytest
import torch
from tests.train.conftest import plan, settings
from transformers import get_scheduler

from loraqa.prompt.tree import Tree
from loraqa.train.schedule import learning_rate, total_steps

TRANSFORMERS_NAMES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant_with_warmup",
}


def transformers_rates(name: str, warmup: int, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-3)
    scheduler: Any = get_scheduler(TRANSFORMERS_NAMES[name], optimizer, warmup, total)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", TRANSFORMERS_NAMES)
@pytest.mark.parametrize(("share", "warmup"), [(0.0, 0), (0.1, 4), (0.5, 20)])
def test_rates_equal_those_of_transformers(name: str, share: float, warmup: int) -> None:
    total = 40
    chosen = settings(
        f"optimisation.schedule={name}",
        f"optimisation.warmup={share}",
        "optimisation.learning_rate=2e-3",
    ).optimisation
    rates = [learning_rate(step, total, chosen) for step in range(total)]
    # transformers' warm-up begins with a step at rate 0, which changes nothing. Ours does not.
    expected = transformers_rates(name, warmup, total)
    assert rates[:warmup] == pytest.approx(expected[1 : warmup + 1])
    assert rates[warmup:] == pytest.approx(expected[warmup:])
    assert min(rates) > 0


def test_a_run_of_one_step_has_the_full_rate() -> None:
    chosen = settings("optimisation.learning_rate=1e-3").optimisation
    assert learning_rate(0, 1, chosen) == 1e-3


def test_total_steps_are_the_steps_of_all_epochs_or_max_steps(trees: list[Tree]) -> None:
    chosen = settings("optimisation.epochs=3")
    batches = plan(trees, chosen)
    every = sum(len(list(batches.epoch(epoch))) for epoch in range(3))
    assert total_steps(batches, chosen.optimisation) == every
    bounded = settings("optimisation.epochs=3", "optimisation.max_steps=2").optimisation
    assert total_steps(batches, bounded) == 2
    unbounded = settings("optimisation.epochs=3", "optimisation.max_steps=999").optimisation
    assert total_steps(batches, unbounded) == every
