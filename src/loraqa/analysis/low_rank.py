"""The linear algebra of low-rank updates, without ever forming BA or decomposing a large matrix.

Hu et al., "LoRA" (2021, arXiv:2106.09685), is the paper that the functions cite.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# More directions than wanted, and passes over W, of the randomised SVD (Halko et al., 2011).
_MORE, _PASSES = 10, 4


class Svd(NamedTuple):
    """U diag(σ) Vᵀ: orthonormal columns u (m, k) and v (n, k), values (k,), largest first."""

    u: Tensor
    values: Tensor
    v: Tensor

    @property
    def directions(self) -> int:
        """How many σ are not 0, except for rounding: the rank."""
        size = max(len(self.u), len(self.v))
        smallest = self.values[0] * size * torch.finfo(self.values.dtype).eps
        return int((self.values > smallest).sum())


def svd_of_product(b: Tensor, a: Tensor) -> Svd:
    """Return the SVD of B (m, r) A (r, n) in fp64, with at most r values.

    With B = Q R and Aᵀ = P S it is that of the small R Sᵀ, as Q and P have orthonormal columns.
    """
    q, left = torch.linalg.qr(b.cpu().double())
    p, right = torch.linalg.qr(a.t().cpu().double())
    u, values, vt = torch.linalg.svd(left @ right.t(), full_matrices=False)
    return Svd(q @ u, values, p @ vt.t())


def truncated(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B' and A', like B and A, so that B'A' is the best approximation of BA of this rank.

    It is the best in Frobenius and spectral norm (Eckart & Young, 1936).
    """
    u, values, v = (part[..., :rank] for part in svd_of_product(b, a))
    new_b, new_a = torch.zeros_like(b), torch.zeros_like(a)
    new_b[:, : len(values)] = (u * values).to(b)
    new_a[: len(values)] = v.t().to(a)
    return new_b, new_a


def stable_rank(values: Tensor) -> float:
    """Return Σσ² / σ₁² (Rudelson & Vershynin, 2007); 0 if all σ are 0."""
    largest = values.max()
    return float(values.square().sum() / largest.square()) if largest > 0 else 0.0


def effective_rank(values: Tensor) -> float:
    """Return exp of the entropy of σᵢ / Σσ (Roy & Vetterli, 2007); 0 if all σ are 0."""
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return φ(i, j) of the spans of the first i and the first j columns, for all i and j.

    φ(i, j) = ‖Uᵢᵀ Vⱼ‖²_F / min(i, j) is 0 for orthogonal spans, and 1 if one holds the other
    (section 7.2 of the paper).

    Args:
        first, second: (n, p) and (n, q), with orthonormal columns.

    Returns:
        (p, q)
    """
    shared = (first.t() @ second).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, size + 1, dtype=shared.dtype) for size in shared.shape)
    return shared / torch.minimum(i[:, None], j)


def random_similarity(i: int, j: int, n: int) -> float:
    """Return the mean of φ(i, j) over random subspaces of n dimensions, max(i, j) / n."""
    return max(i, j) / n


def projected_norm(u: Tensor, weight: Tensor, v: Tensor) -> float:
    """Return ‖Uᵀ W V‖_F: how much of W (m, n) lies in these directions (section 7.3)."""
    return float(torch.linalg.vector_norm(u.t().to(weight) @ weight @ v.to(weight)))


def random_projected_norm(norm: float, count: int, shape: tuple[int, int]) -> float:
    """Return the root mean square of ‖Uᵀ W V‖_F over random U and V of `count` columns each.

    It is ‖W‖ k / √(mn), because each of the k² entries has the mean square ‖W‖² / (mn).
    """
    return norm * count / math.sqrt(math.prod(shape))


def largest_singular_values(weight: Tensor, count: int) -> Tensor:
    """Return the `count` largest singular values of W, by a randomised SVD.

    They are at most the true ones, and less than a percent below them unless W has hardly any
    emphasis. The same W gives the same values.
    """
    size = min(count + _MORE, *weight.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, values, _ = torch.svd_lowrank(weight, size, niter=_PASSES)
    return values[:count]
