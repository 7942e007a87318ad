"""A training in several processes equals one in a single process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tests.conftest import tiny_model
from tests.distributed.together import together
from tests.train.conftest import PASSAGES, plan, scores, settings
from torch import Tensor

from loraqa.distributed.ranks import Ranks
from loraqa.lora.adapt import adapt
from loraqa.model.runner import Runner, TreeRunner
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.invocation import invocation_of_questions
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.speed import branches
from loraqa.speed.kept import keep_trunks
from loraqa.squad import Scores
from loraqa.train import loop
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings

KINDS = ["gpt2", "llama"]
NO_DROPOUT = "lora.dropout=0"


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Any) -> PromptEncoder:
    return PromptEncoder(SegmentTokenizer.from_transformers(tiny_tokenizer), Template(), 250, 20)


@pytest.fixture(scope="module")
def trees(encoder: PromptEncoder) -> list[Tree]:
    return encoder.encode_training(PASSAGES).trees


class Trained:
    """What a process found: the summed gradient of each step, the weights, and the records."""

    def __init__(self, gradients: list[Tensor], weights: Tensor, records: list[Any]) -> None:
        self.gradients, self.weights, self.records = gradients, weights, records


def train(
    runner: Runner, trees: Sequence[Tree], chosen: RunSettings, folder: Path, ranks: Ranks
) -> Trained:
    """Train a runner's adapter, and remember each gradient before it is clipped."""
    gradients: list[Tensor] = []
    records: list[Any] = []
    clip = loop.clip_grad_norm_

    def remember(vector: Any, norm: float) -> Any:
        gradients.append(vector.grad.clone())
        return clip(vector, norm)

    run = RunDirectory(folder / f"run-{ranks.size}-{ranks.rank}")
    if ranks.is_first:
        run.start(chosen, {}, {})
    with patch.object(loop, "clip_grad_norm_", remember):
        steps = plan(list(trees), chosen)
        loop.train(runner, steps, chosen, run, ranks=ranks, on_record=records.append)
    assert run.path.exists() == ranks.is_first
    weights = [p.detach().flatten() for p in runner.model.parameters() if p.requires_grad]
    return Trained(gradients, torch.cat(weights), records)


def adapted(kind: str, chosen: RunSettings, ranks: Ranks, dtype: str = "float32") -> TreeRunner:
    """A new adapter; each process draws another one, so that they have to agree."""
    model = tiny_model(kind, dtype)
    adapt(model, chosen.lora, chosen.seed + ranks.rank)
    return TreeRunner(model)


def assert_same_steps(found: list[Trained], expected: Trained) -> None:
    """The first gradient is equal up to rounding; what comes of it, a little less."""
    for each in found:
        error = (each.gradients[0] - expected.gradients[0]).norm() / expected.gradients[0].norm()
        assert error <= 1e-6
        assert torch.equal(each.weights, found[0].weights)
        for record, wanted in zip(each.records, expected.records, strict=True):
            for key in ("step", "epoch", "loss", "gradient_norm", "learning_rate"):
                assert record[key] == pytest.approx(wanted[key], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 3])
def test_gradients_are_those_of_one_process(
    kind: str, size: int, trees: list[Tree], tmp_path: Path
) -> None:
    chosen = settings(NO_DROPOUT, "optimisation.max_steps=3", "optimisation.clip_norm=0.1")

    def work(ranks: Ranks) -> Trained:
        return train(adapted(kind, chosen, ranks), trees, chosen, tmp_path, ranks)

    (expected,) = together(1, work, tmp_path)
    assert_same_steps(together(size, work, tmp_path), expected)


@pytest.mark.parametrize(
    "options",
    [
        ["optimisation.b_rate_ratio=4"],
        ["lora.dora=true"],
        ["lora.initialisation=pissa"],
        # A step has one context, so one of two processes has none.
        ["optimisation.questions_per_step=1"],
        # Each part of a step takes several micro-batches, and contexts are split.
        ["optimisation.questions_per_step=10", "optimisation.tokens_per_batch=60"],
    ],
    ids=["lora+", "dora", "pissa", "nothing-to-do", "micro-batches"],
)
def test_every_kind_of_training_equals_one_process(
    options: list[str], trees: list[Tree], tmp_path: Path
) -> None:
    chosen = settings(NO_DROPOUT, "optimisation.max_steps=2", *options)

    def work(ranks: Ranks) -> Trained:
        return train(adapted("llama", chosen, ranks), trees, chosen, tmp_path, ranks)

    (expected,) = together(1, work, tmp_path)
    assert_same_steps(together(2, work, tmp_path), expected)


def test_an_activated_lora_with_kept_trunks_equals_one_process(
    encoder: PromptEncoder, trees: list[Tree], tmp_path: Path
) -> None:
    chosen = settings(NO_DROPOUT, "lora.activated=true", "optimisation.max_steps=3")
    invocation = invocation_of_questions(encoder)

    def work(ranks: Ranks) -> Trained:
        model = tiny_model("gpt2")
        adapt(model, chosen.lora, chosen.seed + ranks.rank, invocation)
        runner = keep_trunks(branches.wrap(TreeRunner(model)), 1.0, ranks.on_machine)
        return train(runner, trees, chosen, tmp_path, ranks)

    (expected,) = together(1, work, tmp_path)
    assert_same_steps(together(2, work, tmp_path), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_processes_give_the_same_bits(
    dtype: str, trees: list[Tree], tmp_path: Path
) -> None:
    """With dropout, and with an adapter in float32 on a base in bfloat16."""
    chosen = settings("lora.dropout=0.3", "optimisation.max_steps=4")

    def work(ranks: Ranks) -> Trained:
        return train(adapted("gpt2", chosen, ranks, dtype), trees, chosen, tmp_path, ranks)

    first, again = (together(3, work, tmp_path) for _ in range(2))
    for each in (*first, *again):
        assert torch.equal(each.weights, first[0].weights)
        assert [r["loss"] for r in each.records] == [r["loss"] for r in first[0].records]


@dataclass(frozen=True)
class _Summing:
    """A scoring whose F1 is the sum of what each process found."""

    found: Iterator[float]
    ranks: Ranks

    def answer(self) -> float:
        return next(self.found)

    def merge(self, own: float | None) -> Scores:
        return scores(sum(self.ranks.gather(own, "scores")))


def test_patience_ends_all_after_the_same_step(trees: list[Tree], tmp_path: Path) -> None:
    """Each process scores something else, and all compare the sum."""
    chosen = settings(NO_DROPOUT, "evaluation.every=2", "evaluation.patience=1")

    def work(ranks: Ranks) -> int:
        found = iter([[0, 5, 7], [3, 2, 0]][ranks.rank])
        run = RunDirectory(tmp_path / "run")
        if ranks.is_first:
            run.start(chosen, {}, {})
        return loop.train(
            adapted("gpt2", chosen, ranks),
            plan(trees, chosen),
            chosen,
            run,
            scoring=_Summing(found, ranks),
            ranks=ranks,
        ).step

    # The sums after steps 0, 2 and 4 are 3, 7 and 7. Rank 0 alone would go on, rank 1 stop before.
    assert together(2, work, tmp_path) == [4, 4]


def test_processes_drop_different_numbers(trees: list[Tree], tmp_path: Path) -> None:
    """Each of two has one of two equal contexts; with the same masks their losses were equal."""
    chosen = settings(
        "lora.dropout=0.5", "optimisation.questions_per_step=6", "optimisation.max_steps=2"
    )
    losses: list[float] = []

    def work(ranks: Ranks) -> list[float]:
        add_up = ranks.add_up

        def remember(adapter: Any, loss: Tensor, asked: bool) -> Any:
            losses.append(float(loss))
            return add_up(adapter, loss, asked)

        with patch.object(ranks, "add_up", remember):
            train(adapted("gpt2", chosen, ranks), [trees[1]] * 2, chosen, tmp_path, ranks)
        return losses

    first, second = together(2, work, tmp_path)
    # B is 0 before the first step, whatever is dropped.
    assert first[0] == second[0]
    assert first[1] != second[1]
