"""What LoRA saves, and what it costs in quality: LoRA beside BitFit and full fine-tuning.

    python -m study.baselines --out runs/baselines
    python -m study.baselines --model M --train train.json --dev dev.json --out DIR

All methods train on the same questions in the same steps, with the same loss, schedule and
optimizer, without weight decay, and the weights of the base are in float32. Each method tries its
learning rates with the first seed. The rate with the best F1 on every other context of the dev data
is trained with the other seeds, and scored on the other half. A training is kept as one JSON file
in the output folder, so the same command goes on where it was interrupted. At the end a table is
printed in Markdown. Without data the embedded base learns its small world.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from loraqa.demo.parts import BASE
from loraqa.demo.world import test_passages, train_passages
from loraqa.errors import InputError
from loraqa.files import make_folder, read_json, write_text
from loraqa.report.tables import Column, Table
from loraqa.squad import read_passages, write_official
from loraqa.train.settings import RunSettings, dotted, load_settings
from study.command import context_numbers, dev_questions, telling_errors
from study.measured import train_and_measure
from study.methods import METHODS, NoBiasesError
from study.report import with_interval

Floats = NDArray[np.float64]

_COMMAND = "python -m study.baselines"
_TRAIN_CONTEXTS, _DEV_CONTEXTS = 400, 200
# All questions are learned from, as they are. Weight decay would pull LoRA's update to 0, but the
# weights themselves in the other methods.
_DEFAULTS = (
    "model.dtype=float32",
    "data.held_out=0",
    "data.negatives=0",
    "optimisation.weight_decay=0",
)
# No step has this number, so that a checkpoint is written after the last one alone.
_NEVER = 10**9


def main() -> None:
    """Train what has no result yet, and print the table."""
    with telling_errors():
        _main(_parser().parse_args())


def _main(options: argparse.Namespace) -> None:
    if (options.train is None) != (options.dev is None):
        raise InputError("--train and --dev belong together; give both, or none.")
    make_folder(options.out)
    if options.train is None:
        options.train, options.dev = _write_world(options.out / "data")
    comparison = Comparison(options)
    for method in options.methods:
        try:
            comparison.train(method)
        except NoBiasesError as error:
            sys.stderr.write(f"study: {error} It is left out.\n")
    print(comparison.table().to_markdown())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "study.baselines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(BASE), help="by default the embedded base")
    parser.add_argument("--train", help="a SQuAD v1.1 file; by default 400 contexts of the world")
    parser.add_argument("--dev", help="a SQuAD v1.1 file; by default 200 contexts of the world")
    parser.add_argument("--questions", type=int, help="of dev, about so many, on whole contexts")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    for name, method in METHODS.items():
        rates = " ".join(f"{rate:g}" for rate in method.rates)
        parser.add_argument(
            f"--{name}-rates",
            nargs="+",
            type=float,
            default=method.rates,
            help=f"learning rates to try for {method.title}; by default {rates}",
        )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all trainings"
    )
    return parser


def _write_world(folder: Path) -> tuple[str, str]:
    """Write training and dev data of the embedded world; return their files."""
    make_folder(folder)
    parts = {
        "train": train_passages(seed=0, count=_TRAIN_CONTEXTS),
        "dev": test_passages(seed=1, count=_DEV_CONTEXTS),
    }
    for name, passages in parts.items():
        write_official(folder / f"{name}.json", passages, "1.1")
    return str(folder / "train.json"), str(folder / "dev.json")


@dataclass(frozen=True)
class Training:
    """A method (a key of `METHODS`), its learning rate and its seed."""

    method: str
    rate: float
    seed: int


class Comparison:
    """The trainings of a command line, and what they show.

    Args:
        options: the command line.

    Raises:
        InputError: the data cannot be read, or the dev data have a single context.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._dev = dev_questions(options)
        if len(self._dev.passages) < 2:
            raise InputError(
                f"{options.dev} has only one context, but half of them choose the learning rates; "
                "give more."
            )
        self._fingerprints = [read_passages(options.train).fingerprint, self._dev.fingerprint]
        self._contexts = context_numbers(self._dev)
        self._ids = [
            question.id for passage in self._dev.passages for question in passage.questions
        ]

    def train(self, method: str) -> None:
        """Try the learning rates of a method, then train the best one with all seeds."""
        for training in self._tried(method):
            self._do(training)
        for training in self._seeded(method):
            self._do(training)

    def _do(self, training: Training) -> None:
        """Train and measure, unless that is done."""
        if self._file(training).exists():
            return
        method, settings = METHODS[training.method], self._settings(training)
        told = f"{method.title}, learning rate {training.rate:g}, seed {training.seed}"
        Console(stderr=True).rule(told)
        measured = train_and_measure(settings, method, self._dev, self._options.out, _COMMAND)
        # On one line: the scores of a question are not worth four.
        result = {"settings": dotted(settings), **measured}
        write_text(self._file(training), json.dumps(result))

    def _tried(self, method: str) -> list[Training]:
        """Return the trainings that the learning rate is chosen from."""
        rates = getattr(self._options, f"{method}_rates")
        return [Training(method, rate, self._options.seeds[0]) for rate in rates]

    def _seeded(self, method: str) -> list[Training]:
        """Return the trainings of the best learning rate; of equal ones the first."""
        best = max(self._tried(method), key=self._f1_to_choose)
        return [replace(best, seed=seed) for seed in self._options.seeds]

    def _f1_to_choose(self, training: Training) -> float:
        """Return F1 on the contexts that are not reported."""
        return float(self._scores(training)[self._contexts % 2 == 0, 1].mean())

    def _settings(self, training: Training) -> RunSettings:
        values = {
            "model.source": self._options.model,
            "data.train": self._options.train,
            "data.dev": self._options.dev,
            "optimisation.learning_rate": training.rate,
            "seed": training.seed,
            "checkpoint.every": _NEVER,
        }
        fixed = [f"{key}={value}" for key, value in values.items()]
        settings = load_settings(overrides=[*_DEFAULTS, *self._options.set, *fixed])
        return settings.with_full_paths().with_template()

    def _file(self, training: Training) -> Path:
        """Return the file of a result, whose name tells all that it depends on."""
        settings = dotted(self._settings(training))
        # The same data may lie elsewhere.
        del settings["data.train"], settings["data.dev"]
        what = json.dumps([settings, self._fingerprints], sort_keys=True)
        digest = hashlib.sha256(what.encode()).hexdigest()[:8]
        name = f"{training.method}-{training.rate:g}-{training.seed}-{digest}.json"
        return Path(self._options.out / name)

    def _scores(self, training: Training) -> Floats:
        """Return exact match and F1 of each dev question in percent, (questions, 2)."""
        answers = read_json(self._file(training))["answers"]
        return 100 * np.array([answers[id] for id in self._ids], dtype=np.float64)

    def table(self) -> Table:
        """Return a table with a column for each method that was trained."""
        methods = [m for m in self._options.methods if self._file(self._tried(m)[0]).exists()]
        columns = [self._column(method, methods[0]) for method in methods]
        titles = (Column(METHODS[method].title) for method in methods)
        rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
        return Table("methods", (Column(""), *titles), tuple(rows))

    def _column(self, method: str, reference: str) -> dict[str, str | None]:
        """Return what is known of a method, by the names of the rows."""
        trainings = self._seeded(method)
        results = [read_json(self._file(training)) for training in trainings]
        first, counts = results[0], results[0]["parameters"]
        tried = (f"{each.rate:g}: {self._f1_to_choose(each):.1f}" for each in self._tried(method))
        memory = {part: fmean(r["memory"][part] for r in results) for part in first["memory"]}
        per_step = median(result["seconds_per_step"] for result in results)
        return {
            "learning rate": f"{trainings[0].rate:g}",
            "F1 of the rates tried, on the other contexts": ", ".join(tried),
            "trained parameters": f"{counts['trained']:,}",
            "their share of all": f"{counts['trained'] / counts['total']:.2%}",
            **{f"{part}, MiB": _mib(size) for part, size in memory.items()},
            "memory in total, MiB": _mib(sum(memory.values())),
            "weights on disk, MiB": _mib(first["disk"]["weights"]),
            "checkpoint on disk, MiB": _mib(first["disk"]["checkpoint"]),
            "steps": f"{first['steps']:,}",
            "seconds per step (median)": f"{per_step:.3f}",
            **self._quality(trainings),
            f"F1 minus that of {METHODS[reference].title}": (
                None if method == reference else self._gain(trainings, self._seeded(reference))
            ),
        }

    def _quality(self, trainings: Sequence[Training]) -> dict[str, str]:
        scores = self._reported(trainings)
        return {
            "exact match": with_interval(scores.mean(axis=0)[:, 0], self._reported_contexts()),
            "F1": with_interval(scores.mean(axis=0)[:, 1], self._reported_contexts()),
            "F1 of each seed": ", ".join(f"{f1:.1f}" for f1 in scores[:, :, 1].mean(axis=1)),
        }

    def _gain(self, trainings: Sequence[Training], reference: Sequence[Training]) -> str:
        change = self._reported(trainings).mean(axis=0) - self._reported(reference).mean(axis=0)
        return with_interval(change[:, 1], self._reported_contexts(), sign="+")

    def _reported(self, trainings: Sequence[Training]) -> Floats:
        """Return the scores on the contexts that choose nothing, (seeds, questions, 2)."""
        scores = np.stack([self._scores(training) for training in trainings])
        return scores[:, self._contexts % 2 == 1]

    def _reported_contexts(self) -> NDArray[np.int64]:
        """Return the context of each question that is reported, numbered from 0."""
        reported: NDArray[np.int64] = self._contexts[self._contexts % 2 == 1] // 2
        return reported


def _mib(size: float) -> str:
    return f"{size / 2**20:,.2f}"


if __name__ == "__main__":
    main()
