"""What is compared: groups of settings, and ways to read. Each differs from `RECIPE` in one thing.

All are screened with one seed on few questions. The two best of each group are then trained with
two more seeds on as few, and with three on `FULL` questions. The grid tries each rank, place and
variant of LoRA with each learning rate. The curve trains the recipe on growing data, and the final
experiment the best one on all of it.
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
RATE = "optimisation.learning_rate"
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
STRATEGIES = ("greedy", "span")
# Reads every context anew for each question, so it is there for comparison and not to be chosen.
UNSHARED = "question first"
_BEST = 2
_RANK_64 = {"lora.rank": 64, "lora.alpha": 128.0}
_TWICE = {"prompt.template": "twice"}


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
    for rate in RATES:
        yield Experiment("learning rate", f"{rate:g}", {RATE: rate})
    for reading in READINGS:
        yield Experiment("reading", reading, reading=reading)
    yield Experiment("reading", "context twice", _TWICE)
    yield Experiment("reading", "context twice, rank 64", {**_RANK_64, **_TWICE})
    yield Experiment("template", "default")
    yield Experiment("template", "chat", {"prompt.template": "chat"})
    yield from _ranks()
    for count in (16, 32, 64):
        yield Experiment(
            "questions per step", str(count), {"optimisation.questions_per_step": count}
        )
    for decay in (0.0, 0.01, 0.1):
        yield Experiment("weight decay", f"{decay:g}", {"optimisation.weight_decay": decay})
    for share in (0.25, 0.5):
        # The recipe has none.
        yield Experiment("negatives", f"{share:g}", {"data.negatives": share})
    yield from (*_places(), *_variants(), *_activated())
    yield Experiment("frozen weights", "in full")
    yield Experiment("frozen weights", "int8", {"model.quantisation": "int8"})
    # The same number of steps: more questions, or the same ones again.
    for epochs in (1, 2, 4):
        yield Experiment(
            "epochs",
            str(epochs),
            {"optimisation.epochs": epochs},
            questions=SCREENED * RECIPE["optimisation.epochs"] // epochs,
        )


def _ranks() -> Iterator[Experiment]:
    for rank in (4, 16, 64):
        # α grows with the rank, so that the update keeps its scale.
        yield Experiment("rank", str(rank), {"lora.rank": rank, "lora.alpha": 2.0 * rank})


def _places() -> Iterator[Experiment]:
    yield Experiment("target modules", "all-linear")
    for targets in ("attention", "mlp"):
        yield Experiment("target modules", targets, {"lora.target_modules": f"[{targets}]"})


def _variants() -> Iterator[Experiment]:
    yield Experiment("variant", "LoRA")
    yield Experiment("variant", "DoRA", {"lora.dora": True})
    # What is left of the weights would be rounded in bfloat16.
    pissa = {"lora.initialisation": "pissa", "model.dtype": "float32"}
    yield Experiment("variant", "PiSSA", pissa)
    yield Experiment("variant", "LoRA+", {"optimisation.b_rate_ratio": 4.0})


def _activated() -> Iterator[Experiment]:
    yield Experiment("activated", "not")
    for rank, rate in ((16, 1e-3), (16, 2e-3), (64, 1e-3)):
        # Four epochs with kept trunks take as long as the recipe's two.
        activated = {"lora.activated": True, "optimisation.epochs": 4}
        tuned = {"lora.rank": rank, "lora.alpha": 2.0 * rank, RATE: rate}
        yield Experiment("activated", f"rank {rank}, {rate:g}", {**activated, **tuned})
    # So do two epochs of more questions.
    yield Experiment("activated", "more questions", {"lora.activated": True}, questions=3_400)


def repetition(f1: Callable[[Experiment], float]) -> Iterator[Experiment]:
    """The recipe and the two best of each group, as they were screened, with three seeds.

    Args:
        f1: the score of a screened experiment.
    """
    for best in _best(f1):
        yield from _seeded(best)


def confirmation(f1: Callable[[Experiment], float]) -> Iterator[Experiment]:
    """The recipe and the two best of each group on `FULL` questions, with three seeds.

    Args:
        f1: the score of a screened experiment.
    """
    for best in _best(f1):
        yield from _seeded(replace(best, questions=FULL, dev=None))


def _best(f1: Callable[[Experiment], float]) -> Iterator[Experiment]:
    groups: dict[str, list[Experiment]] = {}
    for experiment in screening():
        if experiment.reading != UNSHARED:
            groups.setdefault(experiment.group, []).append(experiment)
    for candidates in groups.values():
        best = sorted(candidates, key=f1, reverse=True)[:_BEST]
        yield from best
        # What the others are compared with.
        yield from (each for each in candidates if each.is_recipe and each not in best)


def grid() -> Iterator[Experiment]:
    """Each rank, place and variant of LoRA with each learning rate, with three seeds."""
    for tried in (*_ranks(), *_places(), *_variants()):
        for rate in RATES:
            settings = {**tried.settings, RATE: rate}
            name = f"{tried.name}, {rate:g}"
            yield from _seeded(replace(tried, name=name, settings=settings))


def curve() -> Iterator[Experiment]:
    """The recipe on growing data, with three seeds."""
    for questions in (1_000, SCREENED, 3_000, FULL, EVERYTHING):
        yield from _seeded(Experiment("data", f"{questions:,}", questions=questions))


def final() -> Iterator[Experiment]:
    """The recipe with the rank and the reading that screened best, once on all data."""
    for name, settings in (("rank 64", _RANK_64), ("context twice", {**_RANK_64, **_TWICE})):
        yield Experiment("final", name, settings, questions=EVERYTHING, dev=None)


def _seeded(experiment: Experiment) -> Iterator[Experiment]:
    return (replace(experiment, seed=seed) for seed in SEEDS)


def grouped(experiments: Sequence[Experiment]) -> dict[tuple[str, str], list[Experiment]]:
    """Bring the seeds of each experiment together, by group and name."""
    found: dict[tuple[str, str], list[Experiment]] = {}
    for experiment in experiments:
        found.setdefault((experiment.group, experiment.name), []).append(experiment)
    return found
