"""A small training: ten questions on four contexts, a tiny random GPT-2."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import tiny_model

from loraqa.lora.adapt import adapt
from loraqa.model.runner import TreeRunner
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.squad import Answer, Passage, Question, Scores
from loraqa.squad.score import MeanScore
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, load_settings


def passage(name: str, builder: str, year: str) -> Passage:
    """A context with three questions, or with two if the name is short."""
    context = f"The town of {name} has a mill, built by {builder} in {year}."
    asked = [("who", "Who built it?", builder), ("when", "When?", year), ("where", "Where?", name)]
    return Passage(
        context,
        tuple(
            Question(f"{name}-{kind}", text, (Answer(answer, context.index(answer)),))
            for kind, text, answer in asked[: 3 if len(name) > 4 else 2]
        ),
    )


PASSAGES = [
    passage("Aune", "Ruth Olen", "1203"),
    passage("Birkholt", "Tor", "1387"),
    passage("Carrow", "the monks of Lund", "1409"),
    passage("Dal", "Ada", "1101"),
]


def settings(*overrides: str) -> RunSettings:
    """Settings of a training of eight steps, two to an epoch."""
    return load_settings(
        overrides=[
            "model.source=tiny",
            "data.train=train.json",
            "lora.rank=4",
            "lora.dropout=0.1",
            "optimisation.epochs=4",
            "optimisation.questions_per_step=4",
            "optimisation.tokens_per_batch=120",
            "optimisation.learning_rate=1e-2",
            "checkpoint.every=3",
            *overrides,
        ]
    )


@pytest.fixture(scope="session")
def trees(tiny_tokenizer: Any) -> list[Tree]:
    encoder = PromptEncoder(SegmentTokenizer.from_transformers(tiny_tokenizer), Template(), 250, 20)
    return encoder.encode_training(PASSAGES).trees


def plan(trees: list[Tree], chosen: RunSettings) -> BatchPlan:
    options = chosen.optimisation
    return BatchPlan(trees, options.questions_per_step, options.tokens_per_batch, chosen.seed)


def adapted(chosen: RunSettings, dtype: str = "float32") -> TreeRunner:
    """A tiny model with a new adapter."""
    model = tiny_model("gpt2", dtype)
    adapt(model, chosen.lora, chosen.seed)
    return TreeRunner(model)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """The folder of a run that has begun."""
    directory = RunDirectory(tmp_path / "run")
    directory.start(settings(), {}, {})
    return directory


def scores(f1: float, exact_match: float = 0.0) -> Scores:
    """Scores of ten questions."""
    return Scores(MeanScore(exact_match, f1, 10), {})


@dataclass(frozen=True)
class Answering:
    """A scoring of one process whose answers are their scores, None if it was stopped."""

    answer: Callable[[], Scores]

    def merge(self, own: Scores | None) -> Scores | None:
        return own


def adapter_bytes(checkpoint: Path) -> bytes:
    """The adapter in a checkpoint, bit by bit."""
    return (checkpoint / "adapter" / "adapter_model.safetensors").read_bytes()
