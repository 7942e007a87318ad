"""Kernels and graphs on a GPU that computes in bf16; without one these tests are skipped.

Kernels and graphs compute what plain operations compute, and the same bits each time.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraqa.answer.reader import Reader
from loraqa.answer.strategies import parse_strategy
from loraqa.lora.adapt import adapt
from loraqa.lora.flat import FlatAdapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model.choose import choose_runner
from loraqa.model.loss import Gradients, accumulate
from loraqa.model.runner import Runner, TreeRunner
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.reader import Reader as LoadedReader
from loraqa.speed.gpu.graphs import GraphedGradients
from loraqa.speed.gpu.rows import VarlenRowAttention
from loraqa.speed.gpu.trees import triton_tree_attention
from loraqa.speed.trial import fastest
from loraqa.train.loop import train
from loraqa.train.run import RunDirectory
from loraqa.train.settings import parse_settings
from tests.conftest import tiny_config
from tests.model.conftest import PASSAGES

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)),
    reason="there is no GPU with bf16",
)
KINDS = ("gpt2", "llama")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_reader_on_another_gpu_answers_in_another_thread(tiny_folder: Path) -> None:
    reader = LoadedReader.load(tiny_folder, device="cuda:1")
    asked = ("The mill was built by Ruth Olen.", ["Who?"])
    with ThreadPoolExecutor() as pool:
        (there,) = pool.submit(reader.answer, *asked).result()
    assert there.text == reader.answer(*asked)[0].text


@pytest.fixture
def trees(tiny_tokenizer: Any) -> list[Tree]:
    encoder = PromptEncoder(SegmentTokenizer.from_transformers(tiny_tokenizer), Template(), 250, 20)
    return encoder.encode_training(PASSAGES).trees


def model_of(kind: str, dtype: torch.dtype = torch.bfloat16, dropout: float = 0.0) -> Any:
    """A tiny model on the GPU with an adapter of random matrices, in eval mode."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=dtype).cuda().eval()
    adapt(model, LoraSettings(target_modules="all-linear", dropout=dropout))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    return model


def runner_to_train(model: Any) -> Runner:
    """The runner of a training, which computes gradients by graphs."""
    runner, used = fastest(choose_runner(model, 200), ["training", "answering"])
    assert "cuda-graphs" in used
    return runner


def graphed(model: Any) -> tuple[Gradients, FlatAdapter]:
    """Gradients by graphs, and the adapter of the model."""
    runner, adapter = runner_to_train(model), FlatAdapter(model)
    gradients = runner.gradients(adapter)
    assert isinstance(gradients, GraphedGradients)
    return gradients, adapter


def by_kernels(model: Any) -> Runner:
    return TreeRunner(
        model, make_tree_attention=triton_tree_attention, make_row_attention=VarlenRowAttention
    )


def taken(adapter: FlatAdapter) -> Tensor:
    """The gradient; it is set to 0."""
    gradient = adapter.gradient.clone()
    adapter.gradient.zero_()
    return gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_are_chosen(kind: str, dtype: torch.dtype) -> None:
    plain = choose_runner(model_of(kind, dtype), 200)
    _, used = fastest(plain, ["training", "answering"])
    assert "triton-trees" in used
    assert ("varlen-rows" in used) == (dtype != torch.float32)
    assert ("grouped-rows" in used) == (dtype == torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_give_the_gradients_of_plain_operations(kind: str, trees: list[Tree]) -> None:
    model = model_of(kind)
    gradients, adapter = graphed(model)
    step = [trees[:2], trees[2:], trees[:1]]
    expected_loss = accumulate(TreeRunner(model), step)
    expected = taken(adapter)
    results = []
    for _ in range(3):
        loss = gradients(step)()
        results.append(taken(adapter))
        assert loss.item() == pytest.approx(expected_loss.item(), rel=0.01)
        assert (results[-1] - expected).norm() < 0.03 * expected.norm()
    assert all(torch.equal(result, results[0]) for result in results)


def test_graphs_see_other_weights_and_batches(trees: list[Tree]) -> None:
    model = model_of("gpt2")
    gradients, adapter = graphed(model)
    for _ in range(2):
        gradients([trees])()
    taken(adapter)
    for layer in lora_layers(model).values():
        layer.lora_B.data.mul_(3)
    others = [[trees[1], trees[0], replace(trees[2], branches=trees[2].branches[:1])]]
    gradients(others)()
    actual = taken(adapter)
    accumulate(TreeRunner(model), others)
    expected = taken(adapter)
    assert (actual - expected).norm() < 0.03 * expected.norm()


def test_the_seed_determines_dropout(trees: list[Tree]) -> None:
    model = model_of("gpt2", dropout=0.5)
    gradients, adapter = graphed(model)
    for layer in lora_layers(model).values():
        layer.train()
    results = []
    for seed in (1, 1, 1, 2):
        torch.manual_seed(seed)
        gradients([trees])()
        results.append(taken(adapter))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[2], results[3])


def test_a_training_has_the_same_bits_each_time(trees: list[Tree], tmp_path: Path) -> None:
    settings = parse_settings(
        {
            "model": {"source": "tiny"},
            "data": {"train": "none"},
            "optimisation": {"epochs": 4, "questions_per_step": 3, "learning_rate": 0.01},
        }
    )
    results = []
    for run in ("one", "two"):
        model = model_of("gpt2")
        runner = runner_to_train(model)
        plan = BatchPlan(trees * 4, 3, 4096, 0, runner.size)
        (tmp_path / run).mkdir()
        train(runner, plan, settings, RunDirectory(tmp_path / run))
        results.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_logits_of_plain_operations(kind: str, trees: list[Tree]) -> None:
    model = model_of(kind)
    prompts = [
        replace(tree, branches=tuple(replace(b, answer=b.answer[:0]) for b in tree.branches))
        for tree in trees
    ]
    steps = 20
    written = torch.randint(290, (steps, 6), device="cuda")
    chosen = torch.tensor([3, 0, 3, 1, 5, 2], device="cuda")
    found = []
    for runner in (by_kernels(model), TreeRunner(model)):
        session, prompted = runner.prefill(prompts)
        logits = [prompted]
        for step in range(steps):
            if step == steps // 2:
                session.select(chosen)
            logits.append(session.advance(written[step]))
        found.append(torch.cat(logits).float())
    assert len(written[0]) == len(found[0]) // (steps + 1)
    assert (found[0] - found[1]).norm() < 0.03 * found[1].norm()


@pytest.mark.parametrize("strategy", ["greedy", "beam:3", "span", "top-p:0.9"])
def test_all_strategies_answer(strategy: str, tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    reader = Reader(by_kernels(model_of("gpt2")), tokenizer, Template(), 250)
    answers = reader.read(PASSAGES, parse_strategy(strategy))
    again = reader.read(PASSAGES, parse_strategy(strategy))
    assert len(answers) == 6
    assert answers == again
