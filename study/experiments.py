"""What is compared: groups of settings, and ways to read. Each differs from `RECIPE` in one thing.

A group is screened with one seed on few questions. Its two best and the recipe are then trained on
`FULL` questions with three seeds. `CURVE` trains the recipe on growing data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from study.readings import READINGS

RECIPE: dict[str, Any] = {
    "lora.rank": 16,
    "lora.alpha": 32.0,
    "optimisation.learning_rate": 5e-4,
    "optimisation.epochs": 2,
    "optimisation.questions_per_step": 32,
    "optimisation.weight_decay": 0.01,
}
SCREENED, SCREENED_DEV = 2_000, 600
FULL, EVERYTHING = 11_877, 16_161
SEEDS = (0, 1, 2)


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
    def id(self) -> str:
        """A name for files."""
        words = f"{self.group} {self.name} {self.questions} {self.dev or 'all'} {self.seed}"
        return "-".join(words.lower().split())

    @property
    def all_settings(self) -> dict[str, Any]:
        """The recipe with the settings of this experiment."""
        return {**RECIPE, **self.settings, "seed": self.seed}


def screening() -> Iterator[Experiment]:
    """All candidates of all groups. The recipe is in each group; it is trained once."""
    yield Experiment("recipe", "recipe")
    for rate in (1e-3, 2e-3, 2.5e-4):
        yield Experiment("learning rate", f"{rate:g}", {"optimisation.learning_rate": rate})
    for reading in READINGS:
        if reading != "plain":
            yield Experiment("reading", reading, reading=reading)
    for rank in (4, 64):
        # α grows with the rank, so that the update keeps its scale.
        yield Experiment("rank", str(rank), {"lora.rank": rank, "lora.alpha": 2.0 * rank})
    for count in (16, 64):
        yield Experiment(
            "questions per step", str(count), {"optimisation.questions_per_step": count}
        )
    for decay in (0.0, 0.1):
        yield Experiment("weight decay", f"{decay:g}", {"optimisation.weight_decay": decay})
    # The same number of steps: more questions, or the same ones again.
    for epochs in (1, 4):
        yield Experiment(
            "epochs",
            str(epochs),
            {"optimisation.epochs": epochs},
            questions=SCREENED * RECIPE["optimisation.epochs"] // epochs,
        )


def curve() -> Iterator[Experiment]:
    """The recipe on growing data."""
    for questions in (1_000, 3_000, FULL, EVERYTHING):
        for seed in SEEDS:
            yield Experiment("data", f"{questions}", questions=questions, dev=None, seed=seed)
