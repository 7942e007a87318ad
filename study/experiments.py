"""What is compared: groups of settings, and ways to read. Each differs from `RECIPE` in one thing.

All are screened with one seed on few questions. The two best of each group, and the recipe, are
then trained on `FULL` questions with three seeds. The curve trains the recipe on growing data, and
the final experiment the best one on all of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from study.readings import READINGS

RECIPE: dict[str, Any] = {
    "lora.rank": 16,
    "lora.alpha": 32.0,
    "optimisation.learning_rate": 1e-3,
    "optimisation.epochs": 2,
    "optimisation.questions_per_step": 32,
    "optimisation.weight_decay": 0.01,
}
SCREENED, SCREENED_DEV = 2_000, 600
FULL, EVERYTHING = 11_877, 16_161
SEEDS = (0, 1, 2)
STRATEGIES = ("greedy", "span")
# Reads every context anew for each question: the ceiling of what other ways to read can gain.
CEILING = "question first"
_BEST = 2


@dataclass(frozen=True)
class Experiment:
    """A training and its scores.

    Attributes:
        group: what is compared, such as "learning rate".
        name: the value that this experiment tries.
        settings: settings other than the recipe's.
        reading: a key of `READINGS`.
        questions: how many questions to train on.
        dev: how many dev questions to score; None takes all.
        seed: random seed of the run and of the choice of questions.
    """

    group: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    reading: str = "plain"
    questions: int = SCREENED
    dev: int | None = SCREENED_DEV
    seed: int = 0

    @property
    def all_settings(self) -> dict[str, Any]:
        """The recipe with the settings of this experiment."""
        return {**RECIPE, **self.settings, "seed": self.seed}

    @property
    def is_recipe(self) -> bool:
        """Whether nothing but the data and the seed differs from the recipe."""
        return {**RECIPE, **self.settings} == RECIPE and self.reading == "plain"

    @property
    def id(self) -> str:
        """A name for files: the same for all experiments that do the same."""
        what = [self.all_settings, self.reading, self.questions, self.dev]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return f"{self.reading.replace(' ', '-')}-{self.questions}-{self.seed}-{digest[:8]}"


def screening() -> Iterator[Experiment]:
    """All candidates of all groups, and the recipe, with one seed."""
    yield Experiment("recipe", "recipe")
    for rate in (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3):
        yield Experiment("learning rate", f"{rate:g}", {"optimisation.learning_rate": rate})
    for reading in READINGS:
        yield Experiment("reading", reading, reading=reading)
    yield Experiment("template", "default")
    yield Experiment("template", "chat", {"prompt.template": "chat"})
    for rank in (4, 16, 64):
        # α grows with the rank, so that the update keeps its scale.
        yield Experiment("rank", str(rank), {"lora.rank": rank, "lora.alpha": 2.0 * rank})
    for count in (16, 32, 64):
        yield Experiment(
            "questions per step", str(count), {"optimisation.questions_per_step": count}
        )
    for decay in (0.0, 0.01, 0.1):
        yield Experiment("weight decay", f"{decay:g}", {"optimisation.weight_decay": decay})
    for share in (0.25, 0.5):
        # The recipe has none.
        yield Experiment("negatives", f"{share:g}", {"data.negatives": share})
    # The same number of steps: more questions, or the same ones again.
    for epochs in (1, 2, 4):
        yield Experiment(
            "epochs",
            str(epochs),
            {"optimisation.epochs": epochs},
            questions=SCREENED * RECIPE["optimisation.epochs"] // epochs,
        )


def confirmation(f1: Callable[[Experiment], float]) -> Iterator[Experiment]:
    """The recipe and the two best of each group on `FULL` questions, with three seeds.

    Args:
        f1: the score of a screened experiment.
    """
    groups: dict[str, list[Experiment]] = {}
    for experiment in screening():
        if experiment.reading != CEILING:
            groups.setdefault(experiment.group, []).append(experiment)
    for candidates in groups.values():
        for best in sorted(candidates, key=f1, reverse=True)[:_BEST]:
            yield from _seeded(replace(best, questions=FULL, dev=None))


def curve() -> Iterator[Experiment]:
    """The recipe on growing data, with three seeds."""
    for questions in (1_000, 3_000, FULL, EVERYTHING):
        yield from _seeded(Experiment("data", f"{questions:,}", questions=questions, dev=None))


def final() -> Iterator[Experiment]:
    """The recipe with the rank that screened best, once on all data."""
    rank_64 = {"lora.rank": 64, "lora.alpha": 128.0}
    yield Experiment("final", "rank 64", rank_64, questions=EVERYTHING, dev=None)


def _seeded(experiment: Experiment) -> Iterator[Experiment]:
    return (replace(experiment, seed=seed) for seed in SEEDS)


def grouped(experiments: Sequence[Experiment]) -> dict[tuple[str, str], list[Experiment]]:
    """Bring the seeds of each experiment together, by group and name."""
    found: dict[tuple[str, str], list[Experiment]] = {}
    for experiment in experiments:
        found.setdefault((experiment.group, experiment.name), []).append(experiment)
    return found
