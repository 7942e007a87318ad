"""What a demo works on: a base model with settings that suit it, and three parts of data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraqa.answer.evaluate import sample_questions
from loraqa.demo.world import test_passages, train_passages
from loraqa.errors import InputError, counted
from loraqa.squad import QADataset, read_passages

BASE = Path(__file__).parent / "base"
"""The embedded base model."""


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does.

    Attributes:
        train_contexts, dev_contexts, test_contexts: paragraphs of each part of the small world.
        test_questions: the most questions of the user's own data to test on.
        epochs: passes over the training data.
        compared_questions: test questions that every decoding strategy answers.
    """

    train_contexts: int = 2000
    dev_contexts: int = 40
    test_contexts: int = 100
    test_questions: int = 300
    epochs: int = 1
    compared_questions: int = 100


@dataclass(frozen=True)
class DemoBase:
    """A base model, and how a demo trains it.

    Attributes:
        source: as for `load_model`.
        size: how much the demo does with it.
        settings: groups of settings of the run.
        described: what it is, for the console.
    """

    source: str = str(BASE)
    size: DemoSize = DemoSize()
    settings: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "model": {"dtype": "float32"},
            "lora": {"rank": 16, "alpha": 32.0},
            "optimisation": {"questions_per_step": 64, "learning_rate": 2e-3},
            "evaluation": {"every": 60, "questions": 100, "max_answer_tokens": 24},
            "checkpoint": {"every": 60},
        }
    )
    described: str = "the base model, which has never seen a question answered"

    @classmethod
    def pretrained(cls, source: str) -> "DemoBase":
        """Describe a pretrained model: it needs fewer steps, and each takes longer."""
        return cls(
            source,
            DemoSize(
                train_contexts=400,
                dev_contexts=20,
                test_contexts=40,
                compared_questions=40,
                epochs=2,
            ),
            {
                "optimisation": {"max_steps": 60, "learning_rate": 1e-3},
                "evaluation": {"every": 30, "questions": 100},
                "checkpoint": {"every": 30},
            },
            f"the base model {source}, as it is",
        )


@dataclass(frozen=True)
class DemoData:
    """The data of a demo.

    Attributes:
        parts: "train", "dev" (to choose the best weights) and "test".
        described: what they are, for the console.
    """

    parts: Mapping[str, QADataset]
    described: str

    @classmethod
    def world(cls, size: DemoSize) -> "DemoData":
        """Make up the small world."""
        passages = {
            "train": train_passages(seed=0, count=size.train_contexts),
            "dev": test_passages(seed=1, count=size.dev_contexts),
            "test": test_passages(seed=2, count=size.test_contexts),
        }
        return cls(
            {name: QADataset.from_passages(part, "1.1") for name, part in passages.items()},
            f"A small world, told in {size.train_contexts:,} paragraphs with questions. No name in "
            f"the {size.test_contexts:,} test paragraphs occurs in training.",
        )

    @classmethod
    def own(cls, train: str, dev: str, size: DemoSize) -> "DemoData":
        """Read the user's data. Every other passage of `dev` is tested on.

        Raises:
            InputError: data cannot be read, or `dev` has a single passage.
        """
        learned, scored = read_passages(train, split="train"), read_passages(dev)
        if len(scored.passages) < 2:
            raise InputError(f"{dev} has only one context, but the demo needs two; give more.")
        chosen, tested = (scored.with_passages(scored.passages[start::2]) for start in (0, 1))
        tested = sample_questions(tested, size.test_questions, seed=0)
        return cls(
            {"train": learned.to_learn_from("stop"), "dev": chosen, "test": tested},
            f"{counted(len(learned.questions), 'question')} of {train} to learn from, and "
            f"{len(tested.questions):,} of {dev} to test on.",
        )
