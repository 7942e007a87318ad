"""Filters keep the tokens of transformers' warpers; draws follow the filtered distribution."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from loraqa.answer import filters

CASES: list[tuple[Callable[..., torch.Tensor], Any, list[float]]] = [
    (filters.temperature, TemperatureLogitsWarper, [0.3, 1.0, 2.5]),
    (filters.top_k, TopKLogitsWarper, [1, 40, 10_000]),
    (filters.top_p, TopPLogitsWarper, [1e-4, 0.5, 0.9, 0.999]),
    (filters.min_p, MinPLogitsWarper, [1e-3, 0.05, 1.0]),
    (filters.typical, TypicalLogitsWarper, [1e-4, 0.2, 0.95, 0.999]),
]


def random_logits(rows: int = 64, vocabulary: int = 5000) -> torch.Tensor:
    """Return logits from nearly even to very uneven, in fp64 so that rounding moves no token."""
    generator = torch.Generator().manual_seed(0)
    sureness = torch.linspace(0.1, 8, rows, dtype=torch.float64)[:, None]
    return torch.randn(rows, vocabulary, generator=generator) * sureness


@pytest.mark.parametrize(("ours", "theirs", "numbers"), CASES)
def test_equals_transformers(ours: Any, theirs: Any, numbers: list[float]) -> None:
    logits = random_logits()
    for number in numbers:
        left = ours(logits, number).softmax(dim=-1)
        expected = theirs(number)(None, logits.clone()).softmax(dim=-1)
        torch.testing.assert_close(left, expected)


def test_chained_filters_equal_transformers() -> None:
    logits = expected = random_logits()
    for number, (ours, theirs, _) in zip((0.7, 50, 0.9, 0.02, 0.8), CASES, strict=True):
        logits = ours(logits, number)
        expected = theirs(number)(None, expected)
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1))


@pytest.mark.parametrize(("ours", "number"), [(c, n[-2]) for c, _, n in CASES])
def test_adding_a_constant_to_the_logits_changes_nothing(ours: Any, number: float) -> None:
    logits = random_logits()
    left = ours(logits.log_softmax(dim=-1), number).softmax(dim=-1)
    torch.testing.assert_close(left, ours(logits, number).softmax(dim=-1))


@pytest.mark.parametrize("ours", [filters.top_k, filters.top_p])
def test_ties_at_the_edge_are_kept(ours: Any) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0]])
    kept = ours(logits, 2 if ours is filters.top_k else 0.6).isfinite()
    assert kept.tolist() == [[True, False, True, True, True]]


def test_a_nucleus_larger_than_the_first_look() -> None:
    logits = torch.zeros(1, 4000)
    logits[0, ::2] = 1e-3
    assert filters.top_p(logits, 0.4).isfinite().sum() == 2000


def test_draws_follow_the_distribution() -> None:
    logits = filters.top_k(random_logits(4, 30)[1:2], 12)
    draws = 20_000
    uniforms = torch.rand(draws, generator=torch.Generator().manual_seed(1))
    counts = filters.draw(logits.expand(draws, -1), uniforms).bincount(minlength=30)
    expected = logits.softmax(dim=-1)[0] * draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum()
    # The 99.9th percentile of chi-square with 11 degrees of freedom.
    assert chi_square < 31.26


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_draws_are_possible_tokens(uniform: float) -> None:
    logits = filters.min_p(random_logits(), 0.1)
    drawn = filters.draw(logits, torch.full((len(logits),), uniform))
    assert logits.gather(1, drawn[:, None]).isfinite().all()
