"""Tables and plots of the measurements."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

from benchmarks.harness import Contender, Groups, Target, best
from benchmarks.scaling import OURS, PADDED, points
from loraqa.report.plots import BLUE, STYLE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def targets_table(targets: Sequence[Target]) -> Table:
    """Return a table of targets and figures reached."""
    table = _table("targets", "", "target", "reached", "")
    for target in targets:
        table.add_row(target.name, target.wanted, target.reached, "yes" if target.met else "no")
    return table


def ratios_table(ratios: Mapping[str, float]) -> Table:
    """Return a table of numbers by name."""
    table = _table(None, "", "")
    for name, ratio in ratios.items():
        table.add_row(name, f"{ratio:.3g}")
    return table


def contenders_table(name: str, groups: Groups) -> Table:
    """Return a table of time and memory; a star marks the setting that counts for its side."""
    table = _table(
        name, "", "setting", "seconds", "questions/s", "tokens", "peak MiB", "of which a step"
    )
    for side, group in groups.items():
        for contender in group:
            star = " *" if len(group) > 1 and contender is best(group) else ""
            table.add_row(side, contender.job.name + star, *_measured(contender))
    return table


def scaling_plot(groups: Groups) -> "Figure":
    """Plot seconds and memory of a step against each axis, with logarithmic scales."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    by_axis = list(dict.fromkeys(point.axis for point in points()))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(by_axis), 6), layout="constrained")
        rows = figure.subplots(2, len(by_axis), squeeze=False)
        for column, axis in enumerate(by_axis):
            _draw(rows[0][column], groups, axis, "seconds")
            _draw(rows[1][column], groups, axis, "growth_mib")
            rows[1][column].set_xlabel(axis)
        rows[0][0].set_ylabel("seconds of a step")
        rows[1][0].set_ylabel("MiB that a step adds")
        rows[0][0].legend()
    return figure


def speed_plot(groups: Groups) -> "Figure":
    """Plot questions per second of each side that trains on questions, with its best setting."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    speeds = {
        side: best(group).speed
        for side, group in reversed(groups.items())
        if "questions" in best(group).outcomes[0]
    }
    colours = [BLUE if side.startswith("ours") else VERMILLION for side in speeds]
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 0.4 * len(speeds) + 0.8), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(list(speeds), list(speeds.values()), color=colours)
        axes.bar_label(bars, fmt=lambda speed: f"{float(f'{speed:.3g}'):,g}", padding=4)
        axes.margins(x=0.1)
        axes.set_xlabel("questions a second")
        axes.grid(axis="y", visible=False)
    return figure


def _table(title: str | None, *columns: str) -> Table:
    table = Table(*columns, title=title, box=SIMPLE, title_justify="left")
    for column in table.columns[2:]:
        column.no_wrap = True
    return table


def _measured(contender: Contender) -> list[str]:
    """Return the medians as cells; time also has its minimum and maximum."""
    if contender.error:
        return [contender.error]
    if not contender.seconds:
        return []
    keys = ("tokens", "peak_mib", "growth_mib")
    known = [key in contender.outcomes[0] for key in keys]
    low, high = min(contender.seconds), max(contender.seconds)
    spread = f" ({_short(low)} to {_short(high)})" if low < high else ""
    return [
        f"{_short(contender.median_seconds)}{spread}",
        f"{contender.speed:,.2f}" if "questions" in contender.outcomes[0] else "",
        *(
            f"{contender.median(key):,.0f}" if there else ""
            for key, there in zip(keys, known, strict=True)
        ),
    ]


def _short(seconds: float) -> str:
    """Format with two decimals, or with three digits below a second."""
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3g}"


def _draw(axes: "Axes", groups: Groups, axis: str, what: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    chosen = [point for point in points() if point.axis == axis]
    values = [point.value for point in chosen]
    for side, colour, marker in ((OURS, BLUE, "o"), (PADDED, VERMILLION, "s")):
        contenders = [best(groups[point.name(side)]) for point in chosen]
        heights = [c.median_seconds if what == "seconds" else c.median(what) for c in contenders]
        axes.loglog(values, heights, color=colour, marker=marker, label=side)
    axes.set_xticks(values, [f"{value:,.0f}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
