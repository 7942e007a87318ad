"""Everybody computes the same gradient and writes the same answers, or nothing may be timed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks.base import Task

from benchmarks import base, ours, peers, text

QUESTIONS = 6
FAR = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    base.prepare(str(path), layers=2, width=16, heads=2)
    sizes: dict[str, Any] = {"contexts": 2, "tokens": 24, "questions": QUESTIONS // 2}
    text.write(str(path), {"train.json": ("regular", sizes)})
    return path


def task(folder: Path, **changes: Any) -> dict[str, Any]:
    the = Task(
        str(folder), "all-linear", "train.json", 1, "float32", str(folder / "reference.safetensors")
    )
    return asdict(the) | changes


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, Any]:
    """The first contender, whose gradient is the reference."""
    return peers.trainer(task(folder), "float32", batch=4, sampling="random")


def test_trainer_trees_and_rows_have_one_gradient(folder: Path, first: dict[str, Any]) -> None:
    trees, rows = ours.trees(task(folder)), ours.padded(task(folder))
    assert first["questions"] == trees["questions"] == rows["questions"] == QUESTIONS
    assert trees["gradient_error"] < FAR
    assert rows["gradient_error"] < FAR
    assert trees["tokens"] < rows["tokens"]
    assert len(trees["seconds"]) == len(first["seconds"]) == 1


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("layout", ["padded", "padding-free", "packed"])
def test_every_layout_of_sft_has_the_same(folder: Path, layout: str) -> None:
    pytest.importorskip("trl", reason="TRL is installed by `make bench`")
    batch = 1 if layout == "packed" else 4
    assert peers.sft(task(folder), "float32", batch, layout)["gradient_error"] < FAR


@pytest.mark.usefixtures("first")
def test_another_gradient_is_refused(folder: Path) -> None:
    text.write(
        str(folder), {"other.json": ("regular", {"contexts": 1, "tokens": 20, "questions": 1})}
    )
    with pytest.raises(RuntimeError, match="not that of the first contender"):
        ours.trees(task(folder, data="other.json"))


def test_the_answers_are_those_of_generate(folder: Path) -> None:
    asked = (str(folder), "all-linear", "train.json", "float32")
    theirs = peers.generate(*asked, batch=4, answer_tokens=5)["answers"]
    assert len(theirs) == QUESTIONS
    assert ours.read(*asked, answer_tokens=5)["answers"] == theirs


def test_an_epoch_is_one_of_the_command(folder: Path) -> None:
    result = ours.epoch(str(folder), "train.json")
    assert result["questions"] == QUESTIONS
    assert result["steps"] == 1
    assert result["seconds"][0] > 0
