"""Gradients by CUDA graphs equal the plain gradients.

Here kernels and graphs are computed by hand; `tests/test_cuda.py` runs both on a GPU.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import assert_near, tiny_config, tiny_model
from tests.speed.gpu import flash_by_hand
from tests.speed.gpu.graph_by_hand import Recorder
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraqa.lora.adapt import adapt
from loraqa.lora.flat import FlatAdapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model.loss import accumulate
from loraqa.model.runner import PaddedRunner, Runner, TreeRunner
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.tree import Tree
from loraqa.speed import OF_MODELS
from loraqa.speed.gpu import graphs
from loraqa.speed.gpu.graphs import GraphedGradients, _AnswerLoss, _padded_head
from loraqa.speed.gpu.padding import pad_batch
from loraqa.speed.gpu.trees import triton_tree_attention
from loraqa.speed.trial import fastest

EVERYTHING_ELSE = [name for name in OF_MODELS if name != "cuda-graphs"]


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Compute kernels and graphs by hand."""
    by_hand = Recorder(torch.device("cpu"))
    monkeypatch.setattr("loraqa.speed.gpu.trees._attend", flash_by_hand.attend)
    monkeypatch.setattr(graphs, "Recorder", lambda: by_hand)
    return by_hand


def adapted(kind: str = "gpt2", dtype: str = "float64") -> Any:
    """A tiny model with an adapter of random matrices."""
    model = tiny_model(kind, dtype)
    adapt(model, LoraSettings(rank=4))
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=generator)
    return model


def by_kernels(model: Any) -> TreeRunner:
    return TreeRunner(model, make_tree_attention=triton_tree_attention)


def graphed(model: Any) -> Runner:
    """Try graphs alone."""
    runner, used = fastest(by_kernels(model), ["training"], EVERYTHING_ELSE)
    assert used == ("cuda-graphs",)
    return runner


def taken(adapter: FlatAdapter) -> Tensor:
    """The gradient; it is set to 0."""
    gradient = adapter.gradient.clone()
    adapter.gradient.zero_()
    return gradient


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_they_are_the_plain_gradients_each_time(kind: str, trees: list[Tree]) -> None:
    model = adapted(kind)
    runner, adapter = graphed(model), FlatAdapter(model)
    step = [trees[:2], trees[2:], trees[:1]]
    expected_loss = accumulate(TreeRunner(model), step)
    expected = taken(adapter)
    gradients = runner.gradients(adapter)
    assert isinstance(gradients, GraphedGradients)
    for _ in range(3):
        assert gradients(step)().item() == pytest.approx(expected_loss.item())
        torch.testing.assert_close(taken(adapter), expected)
    assert len(model.get_output_embeddings().weight) == model.config.vocab_size


# In bf16 a recording copies the fp32 weights of the adapter. Rounding makes 0.02 of this gradient.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("bfloat16", 0.1)])
def test_a_recording_sees_other_batches_and_weights(
    dtype: str, tolerance: float, trees: list[Tree], recorder: Recorder
) -> None:
    model = adapted(dtype=dtype)
    runner, adapter = graphed(model), FlatAdapter(model)
    gradients = runner.gradients(adapter)
    for _ in range(2):
        gradients([trees[1:]])()
    taken(adapter)
    recorded = recorder.recorded
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_A.mul_(-1)
            layer.lora_B.sub_(0.01)
    fewer = replace(trees[0], branches=trees[0].branches[:1])
    others = [[trees[2], fewer]]
    loss = gradients(others)()
    found = taken(adapter)
    expected_loss = accumulate(TreeRunner(model), others)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
    assert_near(found, taken(adapter), tolerance)
    assert recorder.recorded == recorded


def test_a_step_can_be_prepared_before_the_last_one_has_changed_the_weights(
    trees: list[Tree],
) -> None:
    model = adapted()
    runner, adapter = graphed(model), FlatAdapter(model)
    gradients = runner.gradients(adapter)
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


def test_trying_them_changes_no_weight() -> None:
    model = adapted()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    graphed(model)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def refuse(_: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def do_nothing(_: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    return lambda: None, torch.zeros(())


def compute_once(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """As a graph that was recorded for another GPU: a replay changes nothing here."""
    return lambda: None, compute()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            refuse,
            "it fails here (RuntimeError: operation not permitted when stream is capturing)",
        ),
        (do_nothing, "its gradients differ from the plain ones (relative error 1)"),
        (compute_once, "its gradients differ from the plain ones (relative error 0.7)"),
    ],
)
def test_gradients_are_plain_where_graphs_do_not_work(
    record: Any,
    reason: str,
    trees: list[Tree],
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recorder, "record", record)
    model = adapted()
    plain = by_kernels(model)
    with caplog.at_level(logging.INFO, "loraqa"):
        runner, used = fastest(plain, ["training"], EVERYTHING_ELSE)
    assert caplog.messages == [f"The acceleration cuda-graphs is not used, because {reason}."]
    assert runner is plain
    assert used == ()
    adapter = FlatAdapter(model)
    runner.gradients(adapter)([trees])()
    found = taken(adapter)
    accumulate(TreeRunner(model), [trees])
    torch.testing.assert_close(found, taken(adapter))


@pytest.mark.parametrize(("vocabulary", "padded"), [(300, 320), (320, None)])
def test_a_head_is_padded_where_needed(vocabulary: int, padded: int | None) -> None:
    config = tiny_config("gpt2")
    config.vocab_size = vocabulary
    heads = _padded_head(_AnswerLoss(AutoModelForCausalLM.from_config(config)))
    assert {len(head) for head in heads.values()} == ({padded} if padded else set())


def test_size_is_that_of_the_padded_sequence(trees: list[Tree]) -> None:
    runner = by_kernels(adapted())
    padded = pad_batch(collate_trees(trees)).input_ids.shape[1]
    assert runner.size(trees) < graphs.wrap(runner).size(trees) == padded


def test_they_are_for_training_by_kernels() -> None:
    model = adapted()
    training, answering = frozenset(["training"]), frozenset(["answering"])
    assert graphs.applies(by_kernels(model), training)
    assert not graphs.applies(by_kernels(model), answering)
    assert not graphs.applies(TreeRunner(model), training)
    assert not graphs.applies(PaddedRunner(model), training)


def test_captures_by_hand_refuse_what_a_gpu_would_refuse(recorder: Recorder) -> None:
    numbers = torch.arange(3.0)
    replay, result = recorder.record(lambda: numbers[torch.tensor([2], dtype=torch.int32)].sum())
    replay()
    assert result == 2
    for compute in (lambda: numbers * numbers[1].item(), lambda: numbers[numbers > 1]):
        with pytest.raises(RuntimeError, match=": operation not permitted when stream is captur"):
            recorder.record(compute)[0]()
