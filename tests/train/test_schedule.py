"""The learning rate of each step, against transformers' schedules."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.train.conftest import plan, settings
from transformers import get_scheduler

from loraqa.prompt.plan import ChosenSteps
from loraqa.prompt.tree import Tree
from loraqa.train.schedule import learning_rate, total_epochs, total_steps

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


@dataclass(frozen=True)
class Uneven(ChosenSteps):
    """Epochs of two lengths in turn."""

    def steps_in(self, epoch: int) -> int:
        """See `Plan`."""
        return len(self.steps) + epoch % 2


@pytest.mark.parametrize(
    ("steps_in_an_epoch", "epochs"),
    [(2550, 2), (20, 2), (19, 3), (10, 4), (9, 5), (4, 10), (3, 10), (1, 10)],
)
def test_small_data_are_seen_as_often_as_makes_forty_steps_but_at_most_ten_times(
    steps_in_an_epoch: int, epochs: int
) -> None:
    batches = ChosenSteps([[]] * steps_in_an_epoch)
    chosen = settings("optimisation.epochs=null").optimisation
    assert total_epochs(batches, chosen) == epochs
    assert total_steps(batches, chosen) == epochs * steps_in_an_epoch
    named = chosen.model_copy(update={"epochs": 1})
    assert total_steps(batches, named) == steps_in_an_epoch


def test_epochs_of_different_length_are_counted_as_they_are() -> None:
    chosen = settings("optimisation.epochs=null").optimisation
    # 19 and 20 steps, and then 19 more.
    assert total_epochs(Uneven([[]] * 19), chosen) == 3
    assert total_steps(Uneven([[]] * 19), chosen) == 58
    # 20 and 21.
    assert total_epochs(Uneven([[]] * 20), chosen) == 2
    assert total_steps(Uneven([[]] * 20), chosen) == 41


@pytest.mark.parametrize(
    ("steps_in_an_epoch", "max_steps", "epochs"),
    [(1, 16, 16), (3, 16, 6), (4, 16, 4), (4, 100, 25), (20, 16, 1), (2550, 3000, 2)],
)
def test_without_a_number_of_epochs_all_max_steps_are_made(
    steps_in_an_epoch: int, max_steps: int, epochs: int
) -> None:
    batches = ChosenSteps([[]] * steps_in_an_epoch)
    chosen = settings("optimisation.epochs=null", f"optimisation.max_steps={max_steps}")
    assert total_steps(batches, chosen.optimisation) == max_steps
    assert total_epochs(batches, chosen.optimisation) == epochs


def test_max_steps_count_epochs_of_different_length_as_they_are() -> None:
    chosen = settings("optimisation.epochs=null", "optimisation.max_steps=58").optimisation
    # 19, 20 and 19 steps.
    assert total_epochs(Uneven([[]] * 19), chosen) == 3
    more = chosen.model_copy(update={"max_steps": 59})
    assert total_epochs(Uneven([[]] * 19), more) == 4
