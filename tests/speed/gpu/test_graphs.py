"""Graphed gradients are those of plain operations.

Kernels are computed by hand here, and a graph is what is computed again from the same memory;
`tests/test_cuda.py` has both as they are on a GPU.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import tiny_config, tiny_model
from tests.speed.gpu import flash_by_hand
from tests.train.conftest import settings
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraqa.lora.adapt import adapt
from loraqa.lora.flat import FlatAdapter
from loraqa.lora.layer import lora_layers
from loraqa.model.loss import accumulate, answer_loss
from loraqa.model.runner import KernelRunner, TreeRunner
from loraqa.prompt.tree import Tree
from loraqa.speed.gpu.graphs import (
    GraphedGradients,
    _AnswerLoss,
    _padded_head,
    choose_gradients,
)
from loraqa.train import graphs


class AgainFromTheSameMemory:
    """In place of a `Recorder`."""

    recorded = 0

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        type(self).recorded += 1
        result = torch.zeros((), dtype=torch.float64)
        return lambda: result.copy_(compute()) and None, result


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraqa.speed.gpu.trees._attend", flash_by_hand.attend)
    monkeypatch.setattr(graphs, "Recorder", AgainFromTheSameMemory)
    AgainFromTheSameMemory.recorded = 0


def randomised(kind: str = "gpt2") -> Any:
    model = tiny_model(kind, "float64")
    adapt(model, settings().lora)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return model


def taken(adapter: FlatAdapter) -> Tensor:
    """The gradient, which is 0 afterwards."""
    gradient = adapter.gradient.clone()
    adapter.gradient.zero_()
    return gradient


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_they_are_those_of_plain_operations_each_time(kind: str, trees: list[Tree]) -> None:
    model = randomised(kind)
    adapter = FlatAdapter(model)
    step = [trees[:2], trees[2:], trees[:1]]
    expected_loss = accumulate(TreeRunner(model), step)
    expected = taken(adapter)
    gradients = choose_gradients(KernelRunner(model), adapter)
    assert isinstance(gradients, GraphedGradients)
    for _ in range(3):
        assert gradients(step)().item() == pytest.approx(expected_loss.item())
        torch.testing.assert_close(taken(adapter), expected)
    assert len(model.get_output_embeddings().weight) == model.config.vocab_size


def test_a_recording_sees_other_batches_and_weights(trees: list[Tree]) -> None:
    model = randomised()
    adapter = FlatAdapter(model)
    gradients = choose_gradients(KernelRunner(model), adapter)
    for _ in range(2):
        gradients([trees])()
    taken(adapter)
    recorded = AgainFromTheSameMemory.recorded
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_A.mul_(2)
            layer.lora_B.sub_(0.01)
    fewer = replace(trees[0], branches=trees[0].branches[:1])
    others = [[*reversed(trees[1:]), fewer]]
    loss = gradients(others)()
    found = taken(adapter)
    assert loss.item() == pytest.approx(accumulate(TreeRunner(model), others).item())
    torch.testing.assert_close(found, taken(adapter))
    assert AgainFromTheSameMemory.recorded == recorded


def test_a_step_can_be_prepared_before_the_last_one_has_changed_the_weights(
    trees: list[Tree],
) -> None:
    model = randomised()
    adapter = FlatAdapter(model)
    gradients = choose_gradients(KernelRunner(model), adapter)
    first, second = gradients([trees[:1]]), gradients([trees[1:]])
    first()
    taken(adapter)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.mul_(2)
    second()
    found = taken(adapter)
    accumulate(TreeRunner(model), [trees[1:]])
    torch.testing.assert_close(found, taken(adapter))


def test_what_cannot_be_recorded_is_computed_plainly(
    trees: list[Tree], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(AgainFromTheSameMemory, "record", refuse)
    model = randomised()
    adapter = FlatAdapter(model)
    with caplog.at_level(logging.INFO, "loraqa"):
        gradients = choose_gradients(KernelRunner(model), adapter)
    assert "No CUDA graphs are used: operation not permitted when stream is cap" in caplog.text
    gradients([trees])()
    found = taken(adapter)
    accumulate(TreeRunner(model), [trees])
    torch.testing.assert_close(found, taken(adapter))


def test_a_wrong_recording_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nothing(*_: Any) -> tuple[Callable[[], None], Tensor]:
        return lambda: None, torch.zeros(())

    monkeypatch.setattr(AgainFromTheSameMemory, "record", nothing)
    model = randomised()
    adapter = FlatAdapter(model)
    with caplog.at_level(logging.INFO, "loraqa"):
        gradients = choose_gradients(KernelRunner(model), adapter)
    assert not isinstance(gradients, GraphedGradients)
    assert "No CUDA graphs are used: gradients are " in caplog.text


def test_a_recording_that_works_but_once_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where it is recorded on another GPU than the one that computes: nothing is repeated."""

    def once(_: Any, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        return lambda: None, compute()

    monkeypatch.setattr(AgainFromTheSameMemory, "record", once)
    model = randomised()
    with caplog.at_level(logging.INFO, "loraqa"):
        gradients = choose_gradients(KernelRunner(model), FlatAdapter(model))
    assert not isinstance(gradients, GraphedGradients)
    assert "No CUDA graphs are used: gradients are " in caplog.text


@pytest.mark.parametrize(("vocabulary", "padded"), [(300, 320), (320, None)])
def test_a_head_is_padded_where_it_must_be(vocabulary: int, padded: int | None) -> None:
    config = tiny_config("gpt2")
    config.vocab_size = vocabulary
    model = AutoModelForCausalLM.from_config(config)
    heads = _padded_head(_AnswerLoss(KernelRunner(model)))
    assert {len(head) for head in heads.values()} == ({padded} if padded else set())


def test_other_runners_and_losses_are_computed_plainly() -> None:
    model = randomised()
    adapter = FlatAdapter(model)
    assert not isinstance(choose_gradients(TreeRunner(model), adapter), GraphedGradients)
    doubled = choose_gradients(KernelRunner(model), adapter, lambda *args: 2 * answer_loss(*args))
    assert not isinstance(doubled, GraphedGradients)
