"""What LoRA learned, as plain data: figures of an adapter that are kept as JSON."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

from loraqa.analysis.significance import Estimate

Grid = tuple[tuple[float, ...], ...]

TOP = 4
"""So many directions, the largest, are compared where one figure is to say how alike two are."""

LAYER, KIND, RANK, SCALE = "layer off", "kind off", "cut to rank", "scaled by"
"""The changes of an adapter, as `Effect.change` has them."""


@dataclass(frozen=True)
class Spectrum:
    """The spectrum σ₁ ≥ σ₂ ≥ … of one update ΔW = s BA. Ranks and shares of ΔW = 0 are 0.

    Attributes:
        name: the matrix's name, with the part if the layer is adapted in parts ("…c_attn[q]").
        rank: r.
        singular_values: σ₁, σ₂, …, at most r of them.
        norm: Frobenius norm ‖ΔW‖.
        stable_rank, effective_rank: see `low_rank`.
    """

    name: str
    rank: int
    singular_values: tuple[float, ...]
    norm: float
    stable_rank: float
    effective_rank: float

    @property
    def layer(self) -> int | None:
        """The number of the layer: the first one in the name, if there is one."""
        return layer_and_kind(self.name)[0]

    @property
    def kind(self) -> str:
        """The part of the name after the layer's number, which the layers share."""
        return layer_and_kind(self.name)[1]

    @property
    def spectral_norm(self) -> float:
        """σ₁."""
        return self.singular_values[0]

    @property
    def top_share(self) -> float:
        """The share of ‖ΔW‖² in the first direction, σ₁² / Σσ²."""
        return 1 / self.stable_rank if self.stable_rank else 0.0


@dataclass(frozen=True)
class Measured(Spectrum):
    """A spectrum, and the update against its weight W (section 7.3 of the paper).

    Attributes:
        base_norm: Frobenius norm ‖W‖.
        base_spectral_norm: the largest singular value of W.
        directions: k, how many σ are not 0.
        in_own: ‖Uᵀ W V‖ for the k left and right singular directions of ΔW.
        in_base: the same for the k largest directions of W itself.
        in_random: the same for random directions, as root mean square.
    """

    base_norm: float
    base_spectral_norm: float
    directions: int
    in_own: float
    in_base: float
    in_random: float

    @property
    def relative_norm(self) -> float | None:
        """‖ΔW‖ / ‖W‖; None for W = 0, and so for the ratios below."""
        return _ratio(self.norm, self.base_norm)

    @property
    def relative_spectral_norm(self) -> float | None:
        """The largest singular value of ΔW against that of W."""
        return _ratio(self.spectral_norm, self.base_spectral_norm)

    @property
    def amplification(self) -> float | None:
        """‖ΔW‖ / ‖Uᵀ W V‖: by how much the update exceeds W in its directions; None for ΔW = 0."""
        return _ratio(self.norm, self.in_own)

    @property
    def preference(self) -> float | None:
        """‖Uᵀ W V‖ against that of random directions; None for ΔW = 0."""
        return _ratio(self.in_own, self.in_random)

    @property
    def share(self) -> float | None:
        """‖Uᵀ W V‖ against that of W's own largest directions; None for ΔW = 0."""
        return _ratio(self.in_own, self.in_base)


@dataclass(frozen=True)
class Phi:
    """φ of the `TOP` largest directions of two adapters, and its mean for random directions."""

    value: float
    random: float


@dataclass(frozen=True)
class Likeness:
    """How alike two adapters' updates of one matrix are.

    Attributes:
        name: the matrix's name.
        a: by the right singular directions of both A, as in the paper.
        inputs, outputs: by the right, and left, singular directions of both ΔW; None if one is 0.
    """

    name: str
    a: Phi | None
    inputs: Phi | None
    outputs: Phi | None


@dataclass(frozen=True)
class Compared:
    """Another adapter of the same base, compared with the analysed one.

    Attributes:
        name: the path that was given.
        ranks: its ranks, each once.
        likenesses: of the matrices that both adapt.
        a, inputs, outputs: φ(i, j), the mean over these matrices, as far as all have directions;
            i counts the directions of the analysed adapter, j those of the other. They are empty
            if all updates of one are 0.
    """

    name: str
    ranks: tuple[int, ...]
    likenesses: tuple[Likeness, ...]
    a: Grid
    inputs: Grid
    outputs: Grid


@dataclass(frozen=True)
class LayersOfKind:
    """How alike the updates of one kind of matrix are in different layers.

    Attributes:
        kind: the kind.
        layers: the numbers of the layers whose update is not 0.
        inputs, outputs: (layers, layers) φ of the `TOP` largest right, and left, directions of ΔW.
        random_inputs, random_outputs: the means of φ for random directions.
    """

    kind: str
    layers: tuple[int, ...]
    inputs: Grid
    outputs: Grid
    random_inputs: float
    random_outputs: float


class Pair(NamedTuple):
    """Two layers of a kind in words, φ of their directions, and its mean for random ones."""

    name: str
    value: float
    random: float


@dataclass(frozen=True)
class Checkpoint:
    """The adapter after `step` optimizer steps, and how alike the analysed one it is."""

    step: int
    spectra: tuple[Spectrum, ...]
    likenesses: tuple[Likeness, ...]


@dataclass(frozen=True)
class Effect:
    """What the answers score after a change of the adapter.

    Attributes:
        change: `LAYER`, `KIND`, `RANK` or `SCALE`.
        value: the layer, the kind, the rank or the factor.
        exact_match, f1: the scores in percent.
        exact_match_lost, f1_lost: the adapter's score minus this one, question by question.
    """

    change: str
    value: int | float | str
    exact_match: Estimate
    f1: Estimate
    exact_match_lost: Estimate
    f1_lost: Estimate

    @property
    def name(self) -> str:
        """The change in words."""
        return name_of(self.change, self.value)


@dataclass(frozen=True)
class Effects:
    """What the answers to a data set score after each change of the adapter.

    Attributes:
        data: source of the data.
        strategy: name of the decoding strategy.
        questions, contexts: how many were answered and read.
        effects: the changes.
    """

    data: str
    strategy: str
    questions: int
    contexts: int
    effects: tuple[Effect, ...]

    def of(self, change: str) -> list[Effect]:
        """Return the effects of one kind of change."""
        return [effect for effect in self.effects if effect.change == change]

    def scaled(self, factor: float) -> Effect:
        """Return the effect of a factor: 0 is the base model, 1 the adapter."""
        return next(effect for effect in self.of(SCALE) if effect.value == factor)


@dataclass(frozen=True)
class Learned:
    """All figures of an adapter.

    Attributes:
        adapter: the run or adapter that was given.
        base: its base model.
        updates: the adapted matrices, in the model's order.
        layers: how alike the layers are, by kind.
        checkpoints: the run's checkpoints that are kept, by step.
        others: other adapters.
        effects: what changes of the adapter do to its answers; None without data.
    """

    adapter: str
    base: str
    updates: tuple[Measured, ...]
    layers: tuple[LayersOfKind, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    others: tuple[Compared, ...] = ()
    effects: Effects | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values, those that follow from others too."""
        values = asdict(self)
        for value, update in zip(values["updates"], self.updates, strict=True):
            value |= {name: getattr(update, name) for name in _DERIVED}
        return values


_DERIVED = (
    *("layer", "kind", "spectral_norm", "top_share", "relative_norm"),
    *("relative_spectral_norm", "amplification", "preference", "share"),
)


def name_of(change: str, value: int | float | str) -> str:
    """Return a change of an adapter in words (see `Effect`)."""
    shown = value if isinstance(value, str) else f"{value:g}"
    if change == LAYER:
        return f"layer {shown} off"
    return f"{shown} off" if change == KIND else f"{change} {shown}"


def layer_and_kind(name: str) -> tuple[int | None, str]:
    """Split a matrix's name: `h.3.attn.q` is layer 3 and kind `attn.q`."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else (None, name)


def by_kind(updates: Iterable[Measured]) -> dict[str, list[Measured]]:
    """Group updates by kind, in their order."""
    kinds: dict[str, list[Measured]] = {}
    for update in updates:
        kinds.setdefault(update.kind, []).append(update)
    return kinds


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def pairs_of_layers(layers: Iterable[LayersOfKind], side: str) -> Iterator[Pair]:
    """Yield each pair of layers of a kind, compared on a side, `inputs` or `outputs`."""
    for of_kind in layers:
        grid: Grid = getattr(of_kind, side)
        random: float = getattr(of_kind, f"random_{side}")
        for i, first in enumerate(of_kind.layers):
            for j, second in enumerate(of_kind.layers[:i]):
                name = f"{of_kind.kind} of layers {second} and {first}"
                yield Pair(name, grid[i][j], random)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
