"""The model drawn to 1,024 ranks: how much of a step is work, and how long an epoch takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.ranks.measure import QUESTIONS_PER_RANK, RANKS
from benchmarks.ranks.model import Network, Processor, StepCost, cost_of_step
from benchmarks.ranks.steps import Size, idle, step_of, tokens_of_ranks
from loraqa.report.plots import BLUE, GREEN, ORANGE, STYLE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = (32, 256, 2048, 32768)
"""Questions in a step of all ranks together."""
SQUAD = 87_599
"""Questions in SQuAD v1.1's training data."""

# 32 questions of 1,768 tokens take an H200 6.5 ms (docs/performance.md).
_H200_PER_TOKEN = 6.5e-3 / 1768
_SPREAD = 0.02
H200 = Processor(fixed=0.0, per_token=_H200_PER_TOKEN, spread=_SPREAD)
INFINIBAND = Network(latency=5e-6, bandwidth=40e9)
ETHERNET = Network(latency=25e-6, bandwidth=2.5e9)
"""Assumed: round figures of 400 Gbit/s a GPU, and of 25 Gbit/s with TCP."""

_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE)
_MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class Cluster:
    """What trains: processors, the network between them, and the bytes that they exchange."""

    processor: Processor
    network: Network
    size: float

    def cost(self, tokens: Sequence[float]) -> StepCost:
        """Return the cost of a step whose ranks have these tokens."""
        return cost_of_step(tokens, self.size, self.processor, self.network)


def grown(
    clusters: Mapping[str, Cluster], trees: Sequence[Size], ranks: Sequence[int] = RANKS
) -> Iterator[tuple[str, int, StepCost]]:
    """Yield the cost of steps of 32 questions a rank, for each cluster and number of ranks."""
    for processes in ranks:
        step = step_of(trees, QUESTIONS_PER_RANK * processes, seed=0)
        tokens = tokens_of_ranks(step, processes)
        for name, cluster in clusters.items():
            yield name, processes, cluster.cost(tokens)


def shared(
    trees: Sequence[Size], questions: Sequence[int] = STEPS, ranks: Sequence[int] = RANKS
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield the tokens of each rank, for each size of a step and number of ranks."""
    for asked in questions:
        step = step_of(trees, asked, seed=0)
        for processes in ranks:
            yield asked, processes, tokens_of_ranks(step, processes)


def figure(clusters: Mapping[str, Cluster], trees: Sequence[Size]) -> "Figure":
    """Draw work's share of a step, idle time by the step's size, and the time of an epoch.

    The epoch is computed by the first of the clusters.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    costs = list(grown(clusters, trees))
    steps = list(shared(trees))
    cluster = next(iter(clusters.values()))
    with rc_context(STYLE):
        drawing = Figure(figsize=(13, 4.2), layout="constrained")
        work, waiting, epoch = drawing.subplots(1, 3)
        _lines(
            work,
            {
                name: [(r, 100 * c.efficiency) for n, r, c in costs if n == name]
                for name in clusters
            },
        )
        work.set(title="32 questions a rank", ylabel="% of a step that is work", ylim=(0, 104))
        _lines(
            waiting,
            {
                f"{q:,} questions a step": [(r, 100 * idle(t)) for n, r, t in steps if n == q]
                for q in STEPS
            },
        )
        waiting.set(title="Ranks without trees wait", ylabel="% idle", ylim=(-2, 104))
        _lines(
            epoch,
            {
                f"{q:,} questions a step": [
                    (r, SQUAD / q * cluster.cost(t).total) for n, r, t in steps if n == q
                ]
                for q in STEPS
            },
        )
        epoch.set(title="SQuAD's 87,599 questions", ylabel="seconds of an epoch", yscale="log")
    return drawing


def _lines(axes: "Axes", lines: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    looks = zip(_COLOURS, _MARKERS, strict=True)
    for (name, points), (colour, marker) in zip(lines.items(), looks, strict=False):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker=marker, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
    axes.set_xlabel("ranks")
    axes.legend(fontsize=8)
