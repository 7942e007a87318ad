"""Low-rank algebra against dense decompositions, brute force and drawing at random."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loraqa.analysis.low_rank import (
    effective_rank,
    largest_singular_values,
    projected_norm,
    random_projected_norm,
    random_similarity,
    similarity,
    stable_rank,
    svd_of_product,
    truncated,
)

SHAPES = st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(0, 99)


def drawn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def orthonormal(seed: int, n: int, count: int) -> Tensor:
    return torch.linalg.qr(drawn(seed, n, count))[0]


@settings(max_examples=50)
@given(*SHAPES)
def test_the_svd_is_that_of_the_dense_product(height: int, width: int, rank: int, seed: int):
    b, a = drawn(seed, height, rank), drawn(seed + 100, rank, width)
    u, values, v = svd_of_product(b, a)
    torch.testing.assert_close(u * values @ v.t(), b @ a, rtol=1e-10, atol=1e-10)
    for each in (u, v):
        identity = torch.eye(each.shape[1], dtype=torch.float64)
        torch.testing.assert_close(each.t() @ each, identity, rtol=1e-10, atol=1e-10)
    dense = torch.linalg.svdvals(b @ a)
    count = min(len(values), len(dense))
    torch.testing.assert_close(values[:count], dense[:count], rtol=1e-10, atol=1e-10)
    assert svd_of_product(b, a).directions == torch.linalg.matrix_rank(b @ a)


@settings(max_examples=50)
@given(*SHAPES, st.integers(1, 15))
def test_truncation_is_that_of_the_dense_svd(
    height: int, width: int, rank: int, seed: int, kept: int
):
    b, a = drawn(seed, height, rank), drawn(seed + 100, rank, width)
    new_b, new_a = truncated(b, a, kept)
    assert (new_b.shape, new_a.shape) == (b.shape, a.shape)
    u, values, vt = torch.linalg.svd(b @ a, full_matrices=False)
    values[kept:] = 0
    torch.testing.assert_close(new_b @ new_a, u * values @ vt, rtol=1e-9, atol=1e-9)


def test_known_ranks():
    assert stable_rank(torch.tensor([3.0, 1.0, 0.0])) == pytest.approx(10 / 9)
    # exp H(3/4, 1/4)
    assert effective_rank(torch.tensor([3.0, 1.0, 0.0])) == pytest.approx(4 / 27**0.25)
    three = torch.tensor([2.0, 2.0, 2.0])
    assert (stable_rank(three), effective_rank(three)) == pytest.approx((3, 3))
    nothing = torch.zeros(2)
    assert (stable_rank(nothing), effective_rank(nothing)) == (0, 0)


def test_similarity_is_the_papers_formula():
    first, second = (orthonormal(seed, 9, count).numpy() for seed, count in ((1, 5), (2, 3)))
    found = similarity(torch.from_numpy(first), torch.from_numpy(second))
    assert found.shape == (5, 3)
    for i in range(1, 6):
        for j in range(1, 4):
            norm = np.linalg.norm(first[:, :i].T @ second[:, :j], "fro")
            assert found[i - 1, j - 1] == pytest.approx(norm**2 / min(i, j))


def test_similarity_of_the_same_and_of_orthogonal_spans():
    both = orthonormal(3, 8, 6)
    turned = both[:, :3] @ orthonormal(4, 3, 3)
    assert similarity(both[:, :3], turned)[-1, -1] == pytest.approx(1)
    assert similarity(both[:, :2], both)[-1].tolist()[1:] == pytest.approx([1] * 5)
    assert similarity(both[:, :3], both[:, 3:]).abs().max() < 1e-12


def test_similarity_of_random_spans_is_as_large_as_expected():
    found = [
        similarity(orthonormal(seed, 10, 2), orthonormal(seed + 1000, 10, 4))[-1, -1].item()
        for seed in range(500)
    ]
    assert np.mean(found) == pytest.approx(random_similarity(2, 4, 10), abs=0.02)


def test_projections_of_w():
    w, u, v = drawn(5, 7, 6), orthonormal(6, 7, 2), orthonormal(7, 6, 2)
    expected = np.linalg.norm(u.numpy().T @ w.numpy() @ v.numpy())
    assert projected_norm(u, w, v) == pytest.approx(expected)
    squares = [
        projected_norm(orthonormal(seed, 7, 2), w, orthonormal(seed + 1000, 6, 2)) ** 2
        for seed in range(500)
    ]
    found = random_projected_norm(w.norm().item(), 2, (7, 6))
    assert math.sqrt(np.mean(squares)) == pytest.approx(found, rel=0.05)


def test_the_numbers_of_the_paper_for_random_directions():
    """Table 7: ‖W‖ = 61.95 in 12,288 dimensions gives 0.02 for four random directions."""
    assert random_projected_norm(61.95, 4, (12288, 12288)) == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (3, 50), (1, 1)])
def test_the_largest_singular_values(shape: tuple[int, int]):
    w = drawn(8, *shape)
    state = torch.get_rng_state()
    found = largest_singular_values(w, 4)
    assert torch.get_rng_state().equal(state)
    assert found.equal(largest_singular_values(w, 4))
    torch.testing.assert_close(found, torch.linalg.svdvals(w)[:4], rtol=0.01, atol=0)
