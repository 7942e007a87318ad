"""Tables and plots of what was measured."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.harness import Contender, Groups, Target, best
from benchmarks.scaling import OURS, PADDED, points
from loraqa.report.plots import BLUE, STYLE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def targets_table(targets: Sequence[Target]) -> Table:
    """What was to be reached, and what was."""
    table = Table("", "target", "reached", "", title="Targets")
    for target in targets:
        table.add_row(target.name, target.wanted, target.reached, "yes" if target.met else "no")
    return table


def contenders_table(name: str, groups: Groups) -> Table:
    """Everybody's speed and memory; a star marks what a side is judged by."""
    table = Table("", "setting", "questions/s", "from", "to", "tokens", "MiB", "growth", title=name)
    for side, group in groups.items():
        for contender in group:
            star = " *" if len(group) > 1 and contender is best(group) else ""
            table.add_row(side, contender.job.name + star, *_measured(contender))
    return table


def scaling_plot(groups: Groups) -> "Figure":
    """Seconds and memory of a step against each axis, both logarithmic."""
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


def _measured(contender: Contender) -> list[str]:
    if contender.error:
        return [contender.error]
    if not contender.seconds:
        return [f"{contender.median('gflops'):.0f} GFLOP/s"]
    speeds = sorted(contender.questions / seconds for seconds in contender.seconds)
    keys = [key for key in ("tokens", "peak_mib", "growth_mib") if key in contender.outcomes[0]]
    numbers = {key: f"{contender.median(key):,.0f}" for key in keys}
    return [
        f"{contender.speed:.2f}",
        f"{speeds[0]:.2f}",
        f"{speeds[-1]:.2f}",
        *(numbers.get(key, "") for key in ("tokens", "peak_mib", "growth_mib")),
    ]


def _draw(axes: "Axes", groups: Groups, axis: str, what: str) -> None:
    for side, colour, marker in ((OURS, BLUE, "o"), (PADDED, VERMILLION, "s")):
        chosen = [point for point in points() if point.axis == axis]
        contenders = [best(groups[point.name(side)]) for point in chosen]
        heights = [c.median_seconds if what == "seconds" else c.median(what) for c in contenders]
        axes.loglog(
            [point.value for point in chosen], heights, color=colour, marker=marker, label=side
        )
