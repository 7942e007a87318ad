"""Compare what `loraqa train --dry-run` says with what the training then costs.

python -m benchmarks.costs

Three trainings of the embedded base model on its small world take some minutes. Nothing else should
run on the machine.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from loraqa.demo.parts import BASE
from loraqa.demo.world import test_passages, train_passages
from loraqa.report.tables import Column, Table
from loraqa.squad import write_official
from loraqa.train.run import Record, RunDirectory

SETTINGS = {
    "as in the demo": ["optimisation.questions_per_step=64", "evaluation.every=60"],
    "many small steps": ["optimisation.questions_per_step=8", "optimisation.max_steps=400"],
    "large steps in parts, often scored": [
        "optimisation.questions_per_step=200",
        "optimisation.tokens_per_batch=2048",
        "evaluation.every=5",
        "checkpoint.every=5",
    ],
}
FOR_ALL = [
    "model.dtype=float32",
    "optimisation.epochs=2",
    "optimisation.learning_rate=2e-3",
    "evaluation.questions=100",
]


def main() -> None:
    """Print a table of what was said and what was true."""
    rows: list[tuple[str, str, float, float, str]] = []
    with TemporaryDirectory() as folder:
        data = _write_data(Path(folder))
        for number, (name, chosen) in enumerate(SETTINGS.items()):
            words = [*data, *(w for s in (*FOR_ALL, *chosen) for w in ("--set", s))]
            said = _said(json.loads(_train(words, "--dry-run", "--json")))
            out = Path(folder) / str(number)
            start = time.perf_counter()
            _train(words, "--out", str(out))
            print(f"{name}: {time.perf_counter() - start:,.0f} seconds in all", file=sys.stderr)
            true = _true(RunDirectory(out))
            rows += [
                (name, cost, said[cost], true[cost], f"{said[cost] / true[cost] - 1:+.0%}")
                for cost in true
            ]
    columns = Column("setting"), Column("cost"), Column("said", ",.1f"), Column("true", ",.1f")
    table = Table("Costs of a training", (*columns, Column("off by")), tuple(rows))
    Console().print(table.to_rich())


def _write_data(folder: Path) -> list[str]:
    train, dev = folder / "train.json", folder / "dev.json"
    write_official(train, train_passages(seed=0, count=800), "1.1")
    write_official(dev, test_passages(seed=1, count=40), "1.1")
    return ["--model", str(BASE), "--train", str(train), "--dev", str(dev)]


def _train(words: Sequence[str], *more: str) -> str:
    command = [sys.executable, "-m", "loraqa", "train", *words, *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _said(costs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    seconds, mib = costs["seconds"], 2**20
    return {
        "training (s)": seconds["training"],
        "first scoring (s)": seconds["first_scoring"],
        "later scorings (s)": seconds["later_scorings"],
        "all of these (s)": seconds["total"] - seconds["calibration_and_report"],
        "memory (MiB)": costs["memory"]["total"] / mib,
        "checkpoint (MiB)": costs["disk"]["checkpoint"] / mib,
    }


def _true(run: RunDirectory) -> dict[str, float]:
    records = run.metrics()
    steps = [record for record in records if record["kind"] == "train"]
    first, *later = (record for record in records if record["kind"] == "evaluation")
    newest = max(run.checkpoints.iterdir())
    files = [path for path in newest.rglob("*") if path.is_file()]
    return {
        "training (s)": _seconds(steps),
        "first scoring (s)": first["seconds"],
        "later scorings (s)": _seconds(later),
        "all of these (s)": _seconds([*steps, first, *later]),
        "memory (MiB)": max(step["memory_mib"] for step in steps),
        "checkpoint (MiB)": sum(file.stat().st_size for file in files) / 2**20,
    }


def _seconds(records: Sequence[Record]) -> float:
    return float(sum(record["seconds"] for record in records))


if __name__ == "__main__":
    main()
