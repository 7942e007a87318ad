"""`python -m benchmarks.ranks measure|model|draw`: how training grows with the number of processes.

`measure` trains GPT-2's 124M shape with one and with two processes of a thread each, in some five
minutes on two cores, and writes benchmarks/results/ranks.json. Nothing else should run meanwhile.
`model` fits the model (`benchmarks/ranks/model.py`) to the steps of one process and to all-reduces
of two, and compares the steps of two processes with what it then predicts. `draw` prints tables
for up to 1,024 ranks and writes docs/ranks.png.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.harness import ROOT
from benchmarks.machine import machine
from benchmarks.ranks import measure
from benchmarks.ranks.draw import ETHERNET, H200, INFINIBAND, Cluster, figure, grown, shared
from benchmarks.ranks.model import (
    Network,
    Processor,
    StepCost,
    cost_of_step,
    fit_network,
    fit_processor,
)
from benchmarks.ranks.steps import idle, training_sizes
from benchmarks.text import SOURCE
from loraqa.files import write_json
from loraqa.report.plots import save_png
from loraqa.report.tables import Column, Table

RESULTS = ROOT / "benchmarks" / "results" / "ranks.json"
PICTURE = ROOT / "docs" / "ranks.png"

Measured = Mapping[str, Any]

_QUESTIONS, _STEPS = (16, 32, 64), 8
_QUICK_QUESTIONS, _QUICK_STEPS = (8, 16), 4
_SHOWN_RANKS = (1, 2, 8, 64, 256, 1024)


def main() -> None:
    """Run the command that the command line names."""
    options = _parser().parse_args()
    console = Console(width=120)
    if options.command == "measure":
        _measure(options.results, options.quick)
        return
    measured = json.loads(options.results.read_text())
    tables = (
        _compared(measured) if options.command == "model" else _drawn(measured, options.picture)
    )
    for table in tables:
        console.print(table.to_rich())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmarks.ranks", description=__doc__)
    parser.add_argument("command", choices=["measure", "model", "draw"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of measurements")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the file to draw to")
    parser.add_argument("--quick", action="store_true", help="measure less, in three minutes")
    return parser


def _measure(results: Path, quick: bool) -> None:
    load = os.getloadavg()[0]
    questions, count = (_QUICK_QUESTIONS, _QUICK_STEPS) if quick else (_QUESTIONS, _STEPS)
    write_json(
        results,
        {
            "machine": {
                **machine(" ".join(["python -m benchmarks.ranks", *sys.argv[1:]])),
                "load_before": load,
            },
            "texts": SOURCE,
            "all_reduce": measure.all_reduces(2),
            "steps": measure.steps(questions, (1, 2), count, report=_tell),
            "planning": measure.planning(training_sizes()),
        },
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def processor_of(measured: Measured) -> Processor:
    """Fit a processor to the steps of one rank."""
    alone = [step for step in measured["steps"] if step["ranks"] == 1]
    return fit_processor([step["tokens"][0] for step in alone], [s["seconds"] for s in alone])


def network_of(measured: Measured) -> Network:
    """Fit a network to the all-reduces of two ranks."""
    times = measured["all_reduce"]
    return fit_network([float(size) for size in times], list(times.values()), ranks=2)


def _compared(measured: Measured) -> Iterator[Table]:
    processor, network = processor_of(measured), network_of(measured)
    yield Table(
        "Fitted to steps of one rank, and to all-reduces of two",
        (Column("what"), Column("value", ",.4g")),
        (
            ("fixed, ms a step", 1e3 * processor.fixed),
            ("compute, ms a token", 1e3 * processor.per_token),
            ("spread of ln x", processor.spread),
            ("latency, ms", 1e3 * network.latency),
            ("bandwidth, GB/s", network.bandwidth / 1e9),
        ),
    )
    columns = (
        *(Column("ranks"), Column("questions"), Column("tokens of ranks")),
        *(Column("measured, s", ".3f"), Column("predicted, s", ".3f"), Column("off by")),
    )
    rows = tuple(_row(step, processor, network) for step in measured["steps"])
    yield Table("Steps, medians", columns, rows)


def _row(step: Measured, processor: Processor, network: Network) -> tuple[Any, ...]:
    true = median(step["seconds"])
    said = cost_of_step(step["tokens"], step["adapter_bytes"], processor, network).total
    tokens = " ".join(f"{count:,}" for count in step["tokens"])
    return step["ranks"], step["questions"], tokens, true, said, f"{said / true - 1:+.0%}"


def _drawn(measured: Measured, picture: Path) -> Iterator[Table]:
    trees = training_sizes()
    size = measured["steps"][0]["adapter_bytes"]
    clusters = {
        "H200s, 400 Gbit/s": Cluster(H200, INFINIBAND, size),
        "H200s, 25 Gbit/s": Cluster(H200, ETHERNET, size),
        "measured cores, 25 Gbit/s": Cluster(processor_of(measured), ETHERNET, size),
    }
    save_png(figure(clusters, trees), picture)
    yield _planned(measured["planning"])
    yield from _grown(clusters, list(grown(clusters, trees, _SHOWN_RANKS)))
    columns = Column("questions a step"), *(Column(f"{r:,}", ".1%") for r in _SHOWN_RANKS)
    waits = {(asked, ranks): idle(tokens) for asked, ranks, tokens in shared(trees)}
    rows: Iterator[tuple[Any, ...]] = (
        (f"{asked:,}", *(waits[asked, ranks] for ranks in _SHOWN_RANKS))
        for asked in dict.fromkeys(asked for asked, _ in waits)
    )
    yield Table("Idle, by ranks", columns, tuple(rows))


def _planned(planning: Sequence[Measured]) -> Table:
    columns = Column("ranks", ","), Column("trees", ","), Column("idle", ".2%")
    rows = (
        (found["ranks"], found["trees"], found["idle"], 1e3 * found["seconds"])
        for found in planning
    )
    title = "Steps of 32 questions a rank, shared"
    return Table(title, (*columns, Column("planning, ms", ",.2f")), tuple(rows))


def _grown(
    clusters: Mapping[str, Cluster], costs: Sequence[tuple[str, int, StepCost]]
) -> Iterator[Table]:
    parts = "work", "imbalance", "stragglers", "exchange", "total"
    columns = (Column("ranks", ","), *(Column(f"{part}, ms", ",.2f") for part in parts))
    for name in clusters:
        rows = (
            (ranks, *(1e3 * getattr(cost, part) for part in parts), cost.efficiency)
            for which, ranks, cost in costs
            if which == name
        )
        yield Table(name, (*columns, Column("work", ".1%")), tuple(rows))


if __name__ == "__main__":
    main()
