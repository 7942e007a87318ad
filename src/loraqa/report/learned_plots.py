"""Plots of what LoRA learned. Every function returns a matplotlib figure, as those in `plots`."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraqa.analysis.learned import (
    KIND,
    LAYER,
    RANK,
    SCALE,
    TOP,
    Checkpoint,
    Compared,
    Effect,
    Effects,
    Grid,
    LayersOfKind,
    Learned,
    Measured,
    Spectrum,
    by_kind,
    layer_and_kind,
    mean_of,
)
from loraqa.analysis.significance import Estimate
from loraqa.report.errors import FEWEST_CONTEXTS
from loraqa.report.plots import BLUE, GREEN, INK, ORANGE, VERMILLION, empty_figure, styled
from loraqa.report.tables import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

# Of the kinds of matrices, of which Llama has seven.
_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, "#cc79a7", "#56b4e9", INK)
_MARKERS = "os^Dvph"
_HALF = 0.5


def figures(learned: Learned) -> dict[str, tuple["Figure", str]]:
    """Return the figures that an analysis has, by name, each with a caption."""
    spectra = {update.name: update.singular_values for update in learned.updates}
    found = {
        "spectra": (
            singular_values(spectra),
            "Singular values of each update, largest first, by layer and kind of matrix",
        ),
        "by-layer": (
            by_layer(learned.updates),
            "Size of the updates, effective rank and amplification, by layer and kind of matrix",
        ),
    }
    if learned.layers:
        found["layers"] = (
            layers_alike(learned.layers),
            f"How alike the largest directions (at most {TOP}) of two layers' updates are",
        )
    if learned.checkpoints:
        found["growth"] = (
            growth(learned.checkpoints, learned.updates),
            "Growth of the updates over the training, by kind of matrix",
        )
    for number, other in enumerate(learned.others, 1):
        found[f"against-{number}"] = (
            subspaces(other),
            f"What the first i directions of the adapter and the first j of {other.name} share",
        )
    if learned.effects:
        found["effects"] = (
            effects(learned.effects),
            "Scores after parts of the adapter are taken away, with 95% intervals",
        )
    return found


@styled
def singular_values(spectra: Mapping[str, Sequence[float]]) -> "Figure":
    """Plot a heat map of singular values by layer for each kind of adapted matrix.

    Args:
        spectra: full name of a matrix to the singular values of its update, largest first.
    """
    kinds: dict[str, dict[int, Sequence[float]]] = defaultdict(dict)
    for name, values in spectra.items():
        layer, kind = layer_and_kind(name)
        kinds[kind][layer or 0] = values
    columns = min(len(kinds), 2)
    rows = math.ceil(len(kinds) / columns)
    layers = max(len(of_kind) for of_kind in kinds.values())
    figure = empty_figure(rows * (0.8 + 0.17 * layers) + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False)
    used, unused = panels.flat[: len(kinds)], panels.flat[len(kinds) :]
    for axes in unused:
        axes.remove()
    largest = max(max(values) for values in spectra.values())
    for axes, (kind, of_kind) in zip(used, kinds.items(), strict=True):
        names = sorted(of_kind)
        mesh = _heat_map(axes, [of_kind[layer] for layer in names], 0, largest)
        _label(axes, list(map(str, names)))
        rank = max(map(len, of_kind.values()))
        axes.set_xticks([_HALF, rank - _HALF], ["1", str(rank)])
        axes.set(title=printable(kind))
    figure.supxlabel("singular values of the update, largest first", size=10)
    figure.supylabel("layer", size=10)
    figure.colorbar(mesh, ax=used, aspect=30)
    return figure


@styled
def by_layer(updates: Sequence[Measured]) -> "Figure":
    """Plot heat maps of size, effective rank and amplification: a row per kind, a column per layer.

    Matrices that belong to no layer are in the first column.
    """
    shown: dict[str, Callable[[Measured], float | None]] = {
        "‖ΔW‖ / ‖W‖": lambda update: update.relative_norm,
        "Effective rank": lambda update: update.effective_rank,
        "Amplification ‖ΔW‖ / ‖UᵀWV‖": lambda update: update.amplification,
    }
    kinds = by_kind(updates)
    layers = sorted({update.layer or 0 for update in updates})
    figure = empty_figure(3 * (0.7 + 0.22 * len(kinds)))
    for axes, (title, figure_of) in zip(figure.subplots(3, 1), shown.items(), strict=True):
        rows = [
            [mean_of(figure_of(u) for u in of_kind if (u.layer or 0) == each) for each in layers]
            for of_kind in kinds.values()
        ]
        largest = max((value for row in rows for value in row if value is not None), default=0)
        figure.colorbar(_heat_map(axes, rows, 0, largest), ax=axes, aspect=8)
        _label(axes, [printable(kind) for kind in kinds])
        axes.set_xticks(*_places(layers))
        axes.set(title=title, xlabel="layer")
    return figure


@styled
def layers_alike(layers: Sequence[LayersOfKind]) -> "Figure":
    """Plot φ of each two layers' updates, by input and by output directions: a row per kind."""
    size = max(len(of_kind.layers) for of_kind in layers)
    figure = empty_figure(len(layers) * max(1.4, 0.6 + 0.09 * size) + 0.4)
    panels = figure.subplots(len(layers), 2, squeeze=False)
    for row, of_kind in zip(panels, layers, strict=True):
        for axes, side in zip(row, (of_kind.inputs, of_kind.outputs), strict=True):
            mesh = _heat_map(axes, side, 0, 1)
            _number(axes, of_kind.layers)
            axes.set_xticks(*_places(of_kind.layers))
        row[0].set(title=f"{printable(of_kind.kind)}: inputs")
        row[1].set(title="outputs")
    figure.supxlabel("layer", size=10)
    figure.supylabel("layer", size=10)
    figure.colorbar(mesh, ax=panels, aspect=30, label="φ")
    return figure


@styled
def subspaces(compared: Compared) -> "Figure":
    """Plot φ(i, j) of two adapters' A, and of the inputs and outputs of their updates."""
    sides = {"A": compared.a, "Inputs of ΔW": compared.inputs, "Outputs of ΔW": compared.outputs}
    shown = {title: grid for title, grid in sides.items() if grid}
    figure = empty_figure(2.6)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (title, grid) in zip(panels, shown.items(), strict=True):
        mesh = _heat_map(axes, grid, 0, 1)
        _number(axes, range(1, len(grid) + 1))
        axes.set_xticks(*_places(range(1, len(grid[0]) + 1)))
        axes.set(title=title, xlabel="j")
    panels[0].set(ylabel="i")
    figure.colorbar(mesh, ax=panels, label="φ(i, j)")
    return figure


@styled
def growth(checkpoints: Sequence[Checkpoint], updates: Sequence[Measured]) -> "Figure":
    """Plot size, effective rank and likeness to the adapter against steps; a line per kind."""
    base = {update.name: update.base_norm for update in updates}
    alike = {
        (checkpoint.step, each.name): each.inputs.value if each.inputs else None
        for checkpoint in checkpoints
        for each in checkpoint.likenesses
    }
    shown: dict[str, Callable[[int, Spectrum], float | None]] = {
        "‖ΔW‖ / ‖W‖": lambda _, each: each.norm / base[each.name] if base.get(each.name) else None,
        "Effective rank": lambda _, each: each.effective_rank,
        f"φ of at most {TOP} input directions with the adapter": lambda step, each: alike.get(
            (step, each.name)
        ),
    }
    steps = [checkpoint.step for checkpoint in checkpoints]
    figure = empty_figure(7.2)
    panels = figure.subplots(3, 1, sharex=True)
    for axes, (title, figure_of) in zip(panels, shown.items(), strict=True):
        for number, kind in enumerate(dict.fromkeys(update.kind for update in updates)):
            means = [
                mean_of(figure_of(each.step, of) for of in each.spectra if of.kind == kind)
                for each in checkpoints
            ]
            axes.plot(
                steps,
                [math.nan if mean is None else mean for mean in means],
                f"{_MARKERS[number % len(_MARKERS)]}-",
                color=_COLORS[number % len(_COLORS)],
                markersize=4,
                label=printable(kind),
            )
        axes.set(title=title, ylim=(0, None))
    panels[-1].set(xlabel="optimizer step")
    _number_steps(panels[-1])
    panels[0].legend(fontsize=8, ncols=2)
    return figure


@styled
def effects(measured: Effects) -> "Figure":
    """Plot F1 and exact match after each change, with those of base and adapter as lines."""
    changes = {
        LAYER: "One layer switched off",
        KIND: "One kind of matrix switched off",
        RANK: "All updates cut to a rank",
        SCALE: "All updates scaled by a factor",
    }
    shown = {change: title for change, title in changes.items() if measured.of(change)}
    heights = [0.6 + 0.3 * len(measured.of(KIND)) if change == KIND else 2.2 for change in shown]
    figure = empty_figure(sum(heights) + 0.6 * len(shown))
    panels = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (change, title) in zip(panels, shown.items(), strict=True):
        _draw_effects(axes, measured, change)
        axes.set(title=title)
    panels[0].legend(fontsize=8)
    return figure


def _draw_effects(axes: "Axes", measured: Effects, change: str) -> None:
    """Draw the scores of a kind of change; kinds of matrices have names, and lie from top down."""
    found = measured.of(change)
    across = change == KIND
    places: Any = [number if across else effect.value for number, effect in enumerate(found)]
    for name, color, marker, score in (
        ("F1", GREEN, "o", _f1),
        ("exact match", VERMILLION, "s", _exact_match),
    ):
        scores = [score(effect) for effect in found]
        means = [each.mean for each in scores]
        lows, highs = [each.low for each in scores], [each.high for each in scores]
        look: Any = {"color": color, "alpha": 0.4, "linewidth": 1}
        if across:
            axes.plot(means, places, marker, color=color, markersize=4, label=name)
        else:
            axes.plot(places, means, f"{marker}-", color=color, markersize=4, label=name)
        if measured.contexts >= FEWEST_CONTEXTS:
            intervals: Any = axes.hlines if across else axes.vlines
            intervals(places, lows, highs, **look)
        line = axes.axvline if across else axes.axhline
        line(score(measured.scaled(1)).mean, color=color, linewidth=1, linestyle="--")
        line(score(measured.scaled(0)).mean, color=color, linewidth=1, linestyle=":")
    if across:
        axes.set_yticks(range(len(found)), [printable(str(effect.value)) for effect in found])
        axes.set(ylim=(len(found) - _HALF, -_HALF))
        axes.set(xlabel="percent (dashed: the adapter; dotted: the base)")
        return
    words = {LAYER: "layer", RANK: "rank", SCALE: "factor (0 is the base, 1 the adapter)"}
    axes.set(xlabel=words[change], ylabel="percent")
    if change == LAYER:
        _number_steps(axes)
    if change == RANK:
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(effect.value) for effect in found])


def _f1(effect: Effect) -> Estimate:
    return effect.f1


def _exact_match(effect: Effect) -> Estimate:
    return effect.exact_match


def _heat_map(
    axes: "Axes", rows: Iterable[Sequence[float | None]] | Grid, low: float, high: float
) -> "QuadMesh":
    """Draw rows from the top down; they may differ in length, and values may be missing."""
    import numpy as np

    rows = list(rows)
    image = np.full((len(rows), max(map(len, rows))), np.nan)
    for number, row in enumerate(rows):
        image[number, : len(row)] = [math.nan if value is None else value for value in row]
    axes.invert_yaxis()
    axes.grid(visible=False)
    # As an image: each cell of a large map would be a path of its own in an SVG.
    return axes.pcolormesh(image, cmap="cividis", vmin=low, vmax=high, rasterized=True)


def _number_steps(axes: "Axes") -> None:
    """Number the horizontal axis by whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _number(axes: "Axes", numbers: Sequence[int]) -> None:
    axes.set_yticks(*_places(numbers))


def _label(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks([place + _HALF for place in range(len(names))], names)


def _places(numbers: Sequence[int], most: int = 16) -> tuple[list[float], list[str]]:
    """Return places in the middle of cells and their numbers, evenly left out if they are many."""
    every = math.ceil(len(numbers) / most)
    chosen = range(0, len(numbers), every)
    return [place + _HALF for place in chosen], [str(numbers[place]) for place in chosen]
