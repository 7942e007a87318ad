"""From the matrices of updates to figures (see `learned`)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from loraqa.analysis.learned import (
    TOP,
    Compared,
    Grid,
    LayersOfKind,
    Likeness,
    Measured,
    Phi,
    Spectrum,
    layer_and_kind,
)
from loraqa.analysis.low_rank import (
    Svd,
    effective_rank,
    largest_singular_values,
    projected_norm,
    random_projected_norm,
    random_similarity,
    similarity,
    stable_rank,
    svd_of_product,
)
from loraqa.errors import InputError


@dataclass(frozen=True, eq=False)
class Update:
    """ΔW = s BA of one matrix.

    Attributes:
        name: the matrix's name, with the part if the layer is adapted in parts.
        a, b: (r, n) and (m, r).
        scaling: s.
        weight: (m, n), the frozen W.
    """

    name: str
    a: Tensor
    b: Tensor
    scaling: float
    weight: Tensor

    @cached_property
    def svd(self) -> Svd:
        """The SVD of ΔW, without the directions that are 0."""
        u, values, v = svd_of_product(self.b, self.a)
        found = Svd(u, self.scaling * values, v)
        return Svd(*(part[..., : found.directions] for part in found))

    @cached_property
    def inputs_of_a(self) -> Tensor:
        """The right singular directions of A, (n, r) or (n, n)."""
        directions: Tensor = torch.linalg.svd(self.a.cpu().double(), full_matrices=False).Vh
        return directions.t()


def spectrum(update: Update) -> Spectrum:
    """Return the spectrum of an update, with zeros up to its rank."""
    r, m, n = len(update.a), *update.weight.shape
    values = torch.zeros(min(r, m, n), dtype=torch.float64)
    values[: len(update.svd.values)] = update.svd.values
    return Spectrum(
        update.name,
        r,
        tuple(values.tolist()),
        torch.linalg.vector_norm(values).item(),
        stable_rank(values),
        effective_rank(values),
    )


def measure(update: Update) -> Measured:
    """Return the spectrum of an update, and how it lies to W.

    Raises `InputError` if W holds a NaN or an infinity.
    """
    weight = update.weight.cpu().to(torch.promote_types(update.weight.dtype, torch.float32))
    norm = torch.linalg.vector_norm(weight).item()
    if not math.isfinite(norm):
        raise InputError(
            f"The weight of {update.name} holds a NaN or an infinity; use another base model."
        )
    directions = len(update.svd.values)
    largest = largest_singular_values(weight, max(directions, 1))
    return Measured(
        **vars(spectrum(update)),
        base_norm=norm,
        base_spectral_norm=largest[0].item(),
        directions=directions,
        in_own=projected_norm(update.svd.u, weight, update.svd.v),
        in_base=torch.linalg.vector_norm(largest[:directions]).item(),
        in_random=random_projected_norm(norm, directions, (weight.shape[0], weight.shape[1])),
    )


def compare(name: str, own: Sequence[Update], others: Sequence[Update]) -> Compared:
    """Compare the updates of the matrices that two adapters share, of which there is at least one.

    Args:
        name: what to call the other adapter.
        own, others: the updates of the analysed and of the other adapter.
    """
    pairs = _pairs(own, others)
    moved = [pair for pair in pairs if all(len(each.svd.values) for each in pair)]
    return Compared(
        name,
        tuple(sorted({len(other.a) for other in others})),
        tuple(likenesses(own, others)),
        a=_mean_grid([similarity(one.inputs_of_a, other.inputs_of_a) for one, other in pairs]),
        inputs=_mean_grid([similarity(one.svd.v, other.svd.v) for one, other in moved]),
        outputs=_mean_grid([similarity(one.svd.u, other.svd.u) for one, other in moved]),
    )


def likenesses(own: Sequence[Update], others: Sequence[Update]) -> list[Likeness]:
    """Return how alike two adapters' updates of each matrix that they share are."""
    return [_likeness(one, other) for one, other in _pairs(own, others)]


def layers_of_kinds(updates: Iterable[Update]) -> list[LayersOfKind]:
    """Compare the layers of each kind of matrix that several layers adapt."""
    kinds: dict[str, list[Update]] = {}
    for update in updates:
        layer, kind = layer_and_kind(update.name)
        if layer is not None and len(update.svd.values):
            kinds.setdefault(kind, []).append(update)
    return [_layers_of_kind(kind, each) for kind, each in kinds.items() if len(each) > 1]


def _pairs(own: Sequence[Update], others: Sequence[Update]) -> list[tuple[Update, Update]]:
    by_name = {other.name: other for other in others}
    return [(one, by_name[one.name]) for one in own if one.name in by_name]


def _likeness(one: Update, other: Update) -> Likeness:
    return Likeness(
        one.name,
        a=_phi(one.inputs_of_a, other.inputs_of_a),
        inputs=_phi(one.svd.v, other.svd.v),
        outputs=_phi(one.svd.u, other.svd.u),
    )


def _phi(first: Tensor, second: Tensor) -> Phi | None:
    """Return φ of the `TOP` first columns, or of as many as there are; None if there are none."""
    first, second = first[:, :TOP], second[:, :TOP]
    n, i, j = *first.shape, second.shape[1]
    if not i or not j:
        return None
    return Phi(similarity(first, second)[-1, -1].item(), random_similarity(i, j, n))


def _layers_of_kind(kind: str, updates: Sequence[Update]) -> LayersOfKind:
    layers = tuple(layer for each in updates if (layer := layer_and_kind(each.name)[0]) is not None)
    inputs, random_inputs = _between([each.svd.v for each in updates])
    outputs, random_outputs = _between([each.svd.u for each in updates])
    return LayersOfKind(kind, layers, inputs, outputs, random_inputs, random_outputs)


def _between(directions: Sequence[Tensor]) -> tuple[Grid, float]:
    """Return φ of each two, with equally many columns, and its mean for random directions."""
    count = min(TOP, *(each.shape[1] for each in directions))
    first = [each[:, :count] for each in directions]
    grid = [[similarity(one, other)[-1, -1].item() for other in first] for one in first]
    return _grid(grid), random_similarity(count, count, len(first[0]))


def _mean_grid(grids: Sequence[Tensor]) -> Grid:
    """Return the mean, as far as all reach."""
    if not grids:
        return ()
    i, j = (min(grid.shape[side] for grid in grids) for side in (0, 1))
    return _grid(torch.stack([grid[:i, :j] for grid in grids]).mean(0).tolist())


def _grid(rows: Sequence[Sequence[float]]) -> Grid:
    return tuple(map(tuple, rows))
