"""All contenders compute the same gradient and the same answers; otherwise timing is unfair."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks.base import Task

from benchmarks import base, ours, peers, text
from loraqa.model.runner import TreeRunner
from loraqa.model.trees import PackedTreeAttention

QUESTIONS = 6
FAR = 1e-5


@pytest.fixture(
    scope="module",
    params=[("gpt2", (2, 16, 2)), ("llama", (2, 16, 4, 2, 24))],
    ids=lambda shape: shape[0],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    base.prepare(str(path), *request.param)
    sizes: dict[str, Any] = {"contexts": 2, "tokens": 24, "questions": QUESTIONS // 2}
    text.write(str(path), {"train.json": ("regular", sizes)})
    return path


def task(folder: Path, **changes: Any) -> dict[str, Any]:
    spec = Task(
        str(folder), "all-linear", "train.json", 1, "float32", str(folder / "reference.safetensors")
    )
    return asdict(spec) | changes


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, Any]:
    """The first contender, whose gradient is the reference."""
    return peers.trainer(task(folder), "float32", batch=4, sampling="random")


def test_trainer_trees_and_padded_rows_have_the_same_gradient(
    folder: Path, first: dict[str, Any]
) -> None:
    trees, rows = ours.trees(task(folder)), ours.padded(task(folder))
    assert first["questions"] == trees["questions"] == rows["questions"] == QUESTIONS
    assert trees["gradient_error"] < FAR
    assert rows["gradient_error"] < FAR
    assert trees["tokens"] < rows["tokens"]
    assert len(trees["seconds"]) == len(first["seconds"]) == 1


@pytest.mark.usefixtures("first")
def test_trees_without_accelerations_have_the_same_gradient(folder: Path) -> None:
    assert ours.trees(task(folder), without=["all"])["gradient_error"] < FAR


def test_an_activated_lora_computes_its_trunks_in_the_first_epoch_alone(folder: Path) -> None:
    spec = task(folder, reference=str(folder / "activated.safetensors"), steps=3)
    first, later = (ours.activated(spec, kept) for kept in (False, True))
    assert later["gradient_error"] < FAR
    everything = sum(map(len, Task(**spec).trees()))
    assert first["tokens"] == everything
    # The first of four steps is the first epoch.
    assert everything / 4 < later["tokens"] < everything
    assert len(first["seconds"]) == len(later["seconds"]) == 3


def test_what_is_left_out_is_not_used(folder: Path) -> None:
    spec = Task(**task(folder))
    fast = ours.choose(ours.load(spec))
    of_trees = ["compiled-trees", "attention-by-products", "triton-trees"]
    slow = ours.choose(ours.load(spec), without=of_trees)
    assert isinstance(fast, TreeRunner)
    assert isinstance(slow, TreeRunner)
    assert fast.make_tree_attention is not PackedTreeAttention
    assert slow.make_tree_attention is PackedTreeAttention


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("layout", ["padded", "padding-free", "packed"])
def test_every_layout_of_sft_has_the_same_gradient(folder: Path, layout: str) -> None:
    pytest.importorskip("trl", reason="TRL is installed by `make bench`")
    batch = 1 if layout == "packed" else 4
    assert peers.sft(task(folder), "float32", batch, layout)["gradient_error"] < FAR


@pytest.mark.usefixtures("first")
def test_another_gradient_is_refused(folder: Path) -> None:
    text.write(
        str(folder), {"other.json": ("regular", {"contexts": 1, "tokens": 20, "questions": 1})}
    )
    with pytest.raises(RuntimeError, match="differs from the first contender's"):
        ours.trees(task(folder, data="other.json"))


def test_answers_equal_those_of_generate(folder: Path) -> None:
    asked = (str(folder), "all-linear", "train.json", "float32")
    theirs = peers.generate(*asked, batch=4, answer_tokens=5)["answers"]
    assert len(theirs) == QUESTIONS
    for without in ([], ["all"]):
        assert ours.read(*asked, answer_tokens=5, without=without)["answers"] == theirs


def test_the_overhead_is_a_share_of_a_step(folder: Path) -> None:
    result = ours.overhead(task(folder, steps=2), checkpoint_every=10)
    assert len(result["seconds"]) == 2
    assert 0 < result["overhead"] < 1


def test_an_epoch_takes_all_questions(folder: Path) -> None:
    result = ours.epoch(str(folder), "train.json")
    assert result["questions"] == QUESTIONS
    assert result["steps"] == 1
    assert result["seconds"][0] > 0
