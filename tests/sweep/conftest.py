"""A small base model, data, and settings of a training that takes a second."""

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import tiny_model
from tests.train.conftest import PASSAGES

from loraqa.squad import write_official
from loraqa.train.settings import RunSettings, load_settings


@pytest.fixture(scope="session")
def base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Path:
    """GPT-2-like, unless a test is parametrized with another kind."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model(getattr(request, "param", "gpt2")).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.json"
    write_official(path, PASSAGES, "1.1")
    return path


def choose(base: Path | str, data: Path | str, *overrides: str) -> RunSettings:
    """Settings of eight steps, with scorings at 3, 6 and 8, and a checkpoint at each."""
    return load_settings(
        overrides=[
            f"model.source={base}",
            "model.dtype=float32",
            f"data.train={data}",
            f"data.dev={data}",
            "data.negatives=0",
            "optimisation.epochs=4",
            "optimisation.questions_per_step=4",
            "optimisation.tokens_per_batch=120",
            "optimisation.learning_rate=1e-2",
            "evaluation.every=3",
            "evaluation.max_answer_tokens=8",
            "checkpoint.every=3",
            *overrides,
        ]
    )


@pytest.fixture(scope="session")
def chosen(base: Path, data: Path) -> RunSettings:
    return choose(base, data)
