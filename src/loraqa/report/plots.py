"""Plots of training and of answers.

Every function takes plain data and returns a matplotlib figure. The functions do not use pyplot, so
they need no display and no global state. The colours are Okabe and Ito's, which colour-blind people
can distinguish; lines also differ in marker or dash.
"""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ParamSpec

from loraqa.analysis.calibration_figures import reliability, risk_coverage
from loraqa.files import replacing
from loraqa.report.errors import FEWEST_CONTEXTS
from loraqa.report.tables import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from loraqa.answer.compare import Comparison

P = ParamSpec("P")
Confidences = Mapping[str, tuple[Sequence[float], Sequence[bool]]]
"""For each kind of confidence: a number for each answer, and whether the answer is right."""

BLUE, VERMILLION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
# Colour of text, axes and grid. `to_svg` replaces it by the page's text colour, light or dark.
INK = "#33383d"

# Of the model's own probability, and of the calibrated confidence.
_LOOKS = ((ORANGE, "s--"), (BLUE, "o-"))

# `Any`, because matplotlib's type lists every possible key.
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # Users choose the names, so a dollar sign must not start a formula.
    "text.parse_math": False,
}
# Colour and marker of the strategies of `loraqa compare`.
_FAMILIES = {
    "search": (INK, "o"),
    "temperature": (VERMILLION, "s"),
    "top-k": (BLUE, "^"),
    "top-p": (GREEN, "D"),
    "min-p": (ORANGE, "v"),
    "typical": ("#cc79a7", "p"),
    "joined": ("#56b4e9", "h"),
}
# The axis of distinct answers is the logarithm of what they exceed this by.
_BELOW_ONE = 0.9
_VARIETY_TICKS = (1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)
# Diameter of a marker, and how much larger the next ring around it is, in points.
_MARKER, _RING = 7, 6
# Text stays text (small, searchable), and equal figures have equal bytes.
SVG_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "loraqa"}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def styled(plot: "Callable[P, Figure]") -> "Callable[P, Figure]":
    """Let a function draw in the style of all plots."""

    @wraps(plot)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return drawn


@styled
def training_curves(records: Iterable[Mapping[str, Any]]) -> "Figure":
    """Plot loss, dev EM and F1 (if there are any), and learning rate against optimizer steps.

    Args:
        records: the records of `metrics.jsonl`, of kind `train` and `evaluation`.
    """
    records = list(records)
    steps = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    heights = [3, 2.4, 1.3] if evaluations else [3, 1.3]
    figure = empty_figure(0.6 + sum(heights))
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    first, *middle, last = panels[:, 0]
    _draw_loss(first, steps)
    for axes in middle:
        _draw_scores(axes, evaluations)
    last.plot(_values(steps, "step"), _values(steps, "learning_rate"), color=ORANGE)
    last.set(title="Learning rate", xlabel="optimizer step", ylim=(0, None))
    last.ticklabel_format(axis="y", scilimits=(0, 0))
    return figure


@styled
def quality_against_diversity(comparisons: Iterable["Comparison"]) -> "Figure":
    """Plot F1 of one answer, with its interval, against distinct answers per question.

    Strategies with the same filter share a colour and a marker, and a line joins them. Where points
    lie on one another, each further one is a larger ring around the same centre.
    """
    points = sorted(comparisons, key=lambda point: (point.f1, -point.distinct))
    figure = empty_figure(max(3.8, 1 + 0.2 * len(points)))
    axes = figure.subplots()
    looks = _looks([point.strategy for point in points])
    for family, (color, _) in looks.items():
        of_family = [point for point in points if _family(point.strategy) == family]
        _join(axes, of_family, color)
    for index, (point, size) in enumerate(zip(points, _sizes(points), strict=True)):
        color, marker = looks[_family(point.strategy)]
        if point.contexts >= FEWEST_CONTEXTS:
            ends = [point.plain.f1.low, point.plain.f1.high]
            axes.plot([point.distinct] * 2, ends, color=color, alpha=0.3, linewidth=1)
        axes.plot(
            point.distinct,
            point.f1,
            marker,
            color=color,
            markersize=size,
            fillstyle="none",
            markeredgewidth=1.4,
        )
        # Names form a column, in the order of their points, so that they do not overlap.
        axes.annotate(
            printable(point.strategy),
            (point.distinct, point.f1),
            xytext=(1.06, (index + 0.5) / len(points)),
            textcoords="axes fraction",
            verticalalignment="center",
            color=color,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "alpha": 0.5,
                "linewidth": 0.8,
                # From the middle of the name's left side.
                "relpos": (0, 0.5),
                "shrinkB": size / 2,
            },
        )
    axes.set(
        title="Quality against diversity",
        xlabel="distinct answers per question",
        ylabel="F1 of one answer",
    )
    _scale_variety(axes, max(point.distinct for point in points))
    axes.margins(0.1)
    return figure


@styled
def reliability_diagram(given: Confidences) -> "Figure":
    """Plot which share of the answers is right against their confidence, in ten bins."""
    figure = empty_figure(3.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=1, label="fits exactly")
    for (name, pair), (color, line) in zip(given.items(), _LOOKS, strict=False):
        bins = reliability(*pair)
        axes.plot(
            [each.confidence for each in bins],
            [each.right for each in bins],
            line,
            color=color,
            label=name,
        )
    axes.set(title="Reliability", xlabel="confidence", ylabel="share of right answers")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend()
    return figure


@styled
def risk_against_coverage(given: Confidences) -> "Figure":
    """Plot which share is wrong of the answers with most confidence, against how many those are."""
    figure = empty_figure(3)
    axes = figure.subplots()
    for (name, pair), (color, line) in zip(given.items(), _LOOKS, strict=False):
        coverage, risk = risk_coverage(*pair)
        axes.plot(coverage, risk, line[1:], color=color, label=name)
    axes.set(title="Risk and coverage", xlabel="share of questions answered", ylabel="share wrong")
    axes.set(xlim=(0, 1.02), ylim=(0, None))
    axes.legend()
    return figure


def save_png(figure: "Figure", path: Path) -> None:
    """Write the figure atomically as PNG with a white background."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")


def to_svg(figure: "Figure") -> str:
    """Return the figure as an `<svg>` element for an HTML page, in the page's text colour.

    Equal figures give equal text.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(SVG_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # A page has several figures, and its ids must be unique; nothing refers to these ids.
    return re.sub(r' id="([A-Za-z0-9.]+_\d+|image\w+)"', "", svg)


def empty_figure(height: float) -> "Figure":
    """Return an empty figure of `height` inches, narrow enough for a phone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(6, height), layout="constrained")


def _family(strategy: str) -> str:
    """Return the filter of a strategy that samples, "joined" for several; else "search"."""
    if "+" in strategy:
        return "joined"
    name = strategy.partition(":")[0]
    return name if name in _FAMILIES else "search"


def _looks(strategies: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each family that there is."""
    families = {_family(strategy) for strategy in strategies}
    return {family: look for family, look in _FAMILIES.items() if family in families}


def _join(axes: "Axes", points: Sequence["Comparison"], color: str) -> None:
    """Draw a line through the points of a family of samplers, in the order of their variety."""
    through = sorted((point.distinct, point.f1) for point in points if point.draws)
    if len(through) > 1:
        axes.plot(*zip(*through, strict=True), ":", color=color, alpha=0.6)


def _sizes(points: Sequence["Comparison"]) -> list[float]:
    """Return the size of each marker, larger for each earlier one at its place."""
    x, y = [_spread(point.distinct) for point in points], [point.f1 for point in points]
    # Markers are at one place if they are closer than a point or so: the axes have some 200.
    near = [(max(values) - min(values)) / 150 for values in (x, y)]

    def covers(i: int, j: int) -> bool:
        return abs(x[i] - x[j]) <= near[0] and abs(y[i] - y[j]) <= near[1]

    return [_MARKER + _RING * sum(covers(i, j) for j in range(i)) for i in range(len(points))]


def _scale_variety(axes: "Axes", most: float) -> None:
    """Let the axis of distinct answers spread what is near 1, where most strategies are."""
    import numpy as np
    from matplotlib.ticker import NullLocator

    axes.set_xscale("function", functions=(_spread, lambda x: np.exp(x) + _BELOW_ONE))
    ticks = [tick for tick in _VARIETY_TICKS if tick <= max(1.1 * most, 1.1)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _spread(distinct: Any) -> Any:
    import numpy as np

    return np.log(np.maximum(distinct, _BELOW_ONE + 1e-9) - _BELOW_ONE)


def _draw_loss(axes: "Axes", steps: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    x, loss = _values(steps, "step"), _values(steps, "loss")
    axes.plot(x, loss, color=BLUE, alpha=0.3, linewidth=1, label="each step")
    axes.plot(x, _smoothed(loss), color=BLUE, label="running mean")
    axes.set(title="Training loss", ylabel="nats per answer token", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend()


def _draw_scores(axes: "Axes", evaluations: Sequence[Mapping[str, Any]]) -> None:
    x = _values(evaluations, "step")
    axes.plot(x, _values(evaluations, "f1"), "o-", color=GREEN, label="F1")
    axes.plot(x, _values(evaluations, "exact_match"), "s--", color=VERMILLION, label="exact match")
    axes.set(title="Dev scores", ylabel="percent", ylim=(0, 100))
    axes.legend()


def _values(records: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [record[key] for record in records]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return centred moving means over a twentieth of all values, fewer at the ends."""
    reach = len(values) // 40
    return [
        fmean(values[max(0, index - reach) : index + reach + 1]) for index in range(len(values))
    ]
