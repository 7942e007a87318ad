"""Plots of a sweep. Every function returns a matplotlib figure, as those in `report.plots`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraqa.report.plots import BLUE, INK, ORANGE, empty_figure, styled
from loraqa.report.tables import printable
from loraqa.sweep.settings import Interval, Range
from loraqa.sweep.tried import Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Values in a list whose largest is so many times the smallest are drawn on a logarithmic axis.
_WIDE = 8


@styled
def parallel_coordinates(trials: Sequence[Tried], ranges: Mapping[str, Range]) -> "Figure":
    """Plot each trial as a line through its value on the axis of each setting, and its F1.

    The brighter the line, the higher is F1. Lines of halved trials are dotted.

    Args:
        trials: trials with F1.
        ranges: what was tried, by dotted key.
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    figure = empty_figure(3.8)
    axes = figure.subplots()
    scales = [_Scale.of(key, tried) for key, tried in ranges.items()]
    scores = [trial.f1 or 0.0 for trial in trials]
    low, high = min(scores), max(scores)
    places = [(score - low) / (high - low) if high > low else 0.5 for score in scores]
    lines = [
        [
            *((x, scale.place(trial.values[scale.key])) for x, scale in enumerate(scales)),
            (len(scales), place),
        ]
        for trial, place in zip(trials, places, strict=True)
    ]
    # The darkest colours could not be seen on a dark page, nor the brightest on a light one.
    colors = [colormaps["viridis"](0.15 + 0.7 * place) for place in places]
    dashes = [":" if trial.state == "halved" else "-" for trial in trials]
    axes.add_collection(LineCollection(lines, colors=colors, linestyles=dashes, linewidths=1.6))
    for x, scale in enumerate(scales):
        for place, text in scale.ticks():
            _write(axes, x, place, text)
    for place, score in ((0.0, low), (1.0, high)) if high > low else ((0.5, low),):
        _write(axes, len(scales), place, f"{score:.1f}")
    names = [printable(scale.key.rpartition(".")[2]) for scale in scales]
    axes.set_xticks(range(len(names) + 1), [*names, "F1"], rotation=20, ha="right")
    axes.set(title="Trials", xlim=(-0.3, len(names) + 0.5), ylim=(-0.06, 1.06), yticks=[])
    axes.grid(visible=True, axis="x", alpha=0.6)
    axes.spines["left"].set_visible(False)
    return figure


@styled
def f1_against(trials: Sequence[Tried], ranges: Mapping[str, Range]) -> "Figure":
    """Plot F1 against each setting that is a number, a panel for each. Halved trials are rings."""
    from matplotlib.ticker import NullLocator

    keys = [key for key in ranges if any(is_number(trial.values[key]) for trial in trials)]
    figure = empty_figure(2.4 * len(keys))
    panels = figure.subplots(len(keys), 1, squeeze=False)[:, 0]
    for axes, key in zip(panels, keys, strict=True):
        scale = _Scale.of(key, ranges[key])
        for state, color, fill in (("done", BLUE, "full"), ("halved", ORANGE, "none")):
            points = [
                (trial.values[key], trial.f1)
                for trial in trials
                if trial.state == state and is_number(trial.values[key])
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=color, fillstyle=fill, label=state)
        if scale.log:
            axes.set_xscale("log")
        if not isinstance(ranges[key], Interval):
            numbers = [value for value in scale.marks if is_number(value)]
            axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=printable(key), ylabel="F1 on dev")
    panels[0].set(title="F1 against each setting")
    if any(trial.state == "halved" for trial in trials):
        panels[0].legend()
    return figure


def is_number(value: Any) -> bool:
    """Return whether a value is an integer or a real number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Scale:
    """Where the values of a setting lie on an axis from 0 to 1.

    Attributes:
        key: the setting.
        marks: the values that the axis names: numbers, or in a mixed list the texts of all.
        log: whether the axis is logarithmic.
    """

    key: str
    marks: Sequence[Any]
    log: bool

    @classmethod
    def of(cls, key: str, tried: Range) -> "_Scale":
        """Return the scale of a setting."""
        if isinstance(tried, Interval):
            return cls(key, (tried.low, tried.high), tried.log)
        if all(map(is_number, tried)):
            return cls(key, sorted(tried), 0 < _WIDE * min(tried) <= max(tried))
        return cls(key, list(map(json.dumps, tried)), log=False)

    def place(self, value: Any) -> float:
        """Return the place of a value; numbers lie where they belong, others in their order."""
        if isinstance(self.marks[0], str):
            return self.marks.index(json.dumps(value)) / max(len(self.marks) - 1, 1)
        low, high = self.marks[0], self.marks[-1]
        if low == high:
            return 0.0
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return float((value - low) / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        """Return the place and the text of each value that the axis names."""
        if isinstance(self.marks[0], str):
            places = [self.place(json.loads(mark)) for mark in self.marks]
            return list(zip(places, (mark.strip('"') for mark in self.marks), strict=True))
        return [(self.place(mark), f"{mark:g}") for mark in self.marks]


def _write(axes: "Axes", x: float, place: float, text: str) -> None:
    axes.annotate(
        printable(text),
        (x, place),
        xytext=(4, 0),
        textcoords="offset points",
        verticalalignment="center",
        fontsize=8,
        color=INK,
    )
