"""Tables of the study's results, with bootstrap intervals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraqa.analysis.significance import interval
from loraqa.errors import InputError
from loraqa.report.tables import Column, Table
from loraqa.squad import QADataset
from study.experiments import RATE, RATES, STRATEGIES, Experiment, grouped

Floats = NDArray[np.float64]

_METRICS = ("exact match", "F1")


class Results:
    """The results of experiments that are done.

    Args:
        folder: the folder of the results.
        dev: the questions that were scored.
    """

    def __init__(self, folder: Path, dev: QADataset) -> None:
        self._folder = folder
        self._passage = {q.id: i for i, p in enumerate(dev.passages) for q in p.questions}

    def has(self, experiment: Experiment) -> bool:
        """Return whether an experiment is done."""
        return self.file(experiment).exists()

    def f1(self, experiment: Experiment) -> float:
        """Return F1 of an experiment's spans; -1 if it is not done."""
        return self._read(experiment)["answers"]["span"]["f1"] if self.has(experiment) else -1.0

    def table(self, title: str, experiments: Sequence[Experiment]) -> Table:
        """Compare the experiments of a group with the recipe, question by question.

        A cell holds the mean over seeds with its 95% interval over contexts, or the difference
        to the recipe, which is significant if its interval does not hold 0.
        """
        columns = [Column(title), Column("seeds")]
        columns += [Column(f"{how}, {metric}") for how in STRATEGIES for metric in _METRICS]
        columns += [Column("span's F1 against the recipe"), Column("steps", ",d")]
        groups = grouped([e for e in experiments if self.has(e)])
        recipes = [seeds for seeds in groups.values() if seeds[0].is_recipe]
        # On growing data all are the recipe.
        recipe = recipes[0] if len(recipes) == 1 else None
        rows = [
            (
                name,
                len(seeds),
                *self._scores(seeds),
                self._gain(seeds, recipe),
                self._read(seeds[0])["steps"],
            )
            for (_, name), seeds in groups.items()
        ]
        return Table(title, tuple(columns), tuple(rows))

    def by_rate(self, experiments: Sequence[Experiment]) -> Table:
        """Show F1 of the spans of a grid: a row for what was tried, a column for each rate.

        A cell holds the mean over seeds with its 95% interval over contexts.
        """
        rows: dict[str, dict[float, str]] = {}
        for (group, name), seeds in grouped([e for e in experiments if self.has(e)]).items():
            f1 = self._by_question(seeds, "span")[:, 1]
            tried = rows.setdefault(f"{group} {name.rpartition(', ')[0]}", {})
            tried[seeds[0].settings[RATE]] = with_interval(f1, self._clusters(seeds[0]))
        columns = (Column("span's F1 by rate"), *(Column(f"{rate:g}") for rate in RATES))
        cells = tuple((tried, *map(by_rate.get, RATES)) for tried, by_rate in rows.items())
        return Table("grid", columns, cells)

    def _scores(self, seeds: Sequence[Experiment]) -> list[str]:
        scores = [self._by_question(seeds, how) for how in STRATEGIES]
        clusters = self._clusters(seeds[0])
        return [with_interval(each[:, i], clusters) for each in scores for i in (0, 1)]

    def _gain(self, seeds: Sequence[Experiment], recipe: Sequence[Experiment] | None) -> str | None:
        if recipe is None or seeds is recipe:
            return None
        # Seeds draw the questions to train on, so only equal seeds are compared.
        pairs = [(a, b) for a in seeds for b in recipe if a.seed == b.seed]
        if not pairs:
            return None
        tried, plain = (self._by_question(each, "span") for each in zip(*pairs, strict=True))
        return with_interval((tried - plain)[:, 1], self._clusters(seeds[0]), sign="+")

    def _by_question(self, seeds: Sequence[Experiment], how: str) -> Floats:
        """Return exact match and F1 in percent, means over the seeds, (questions, 2)."""
        ids = self._ids(seeds[0])
        answers = [self._read(experiment)["answers"][how]["by_question"] for experiment in seeds]
        scores = [np.array([each[id] for id in ids], dtype=np.float64) for each in answers]
        mean: Floats = 100 * np.mean(scores, axis=0)
        return mean

    def _clusters(self, experiment: Experiment) -> NDArray[np.int64]:
        """Number the contexts of the scored questions from 0, (questions,)."""
        ids = self._ids(experiment)
        if not self._passage.keys() >= set(ids):
            raise InputError(
                f"{self.file(experiment)} has scores of questions that the dev data lack; give the "
                "file that was scored with --dev."
            )
        return np.unique([self._passage[id] for id in ids], return_inverse=True)[1]

    def _ids(self, experiment: Experiment) -> list[str]:
        """Return the ids of the scored questions, in one order for all experiments."""
        return sorted(self._read(experiment)["answers"]["span"]["by_question"])

    def file(self, experiment: Experiment) -> Path:
        """Return the file of an experiment's result."""
        return self._folder / f"{experiment.id}.json"

    def _read(self, experiment: Experiment) -> Mapping[str, Any]:
        read: Mapping[str, Any] = json.loads(self.file(experiment).read_text())
        return read


def with_interval(values: Floats, clusters: NDArray[np.int64], sign: str = "") -> str:
    """Return the mean with its 95% interval over contexts; `sign` is "+" for differences."""
    low, high = interval(values, clusters)
    return f"{values.mean():{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"
