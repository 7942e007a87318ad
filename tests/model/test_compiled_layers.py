"""Compiled layers train as they did before, and are compiled once for each length of a row.

The compilers here run what was traced as it stands: what is traced, and how often, is the same for
those of a GPU.
"""

import logging
from functools import partial
from typing import Any

import pytest
import torch
from tests.conftest import tiny_config
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM

from loraqa.lora.adapt import adapt
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model import compiled_layers, flex
from loraqa.model.compiled_layers import compile_layers
from loraqa.model.runner import BucketRunner, Runner, TreeRunner
from loraqa.prompt.tree import Tree

STEPS = 100_000

pytestmark = [
    pytest.mark.usefixtures("flex_gradients"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


@pytest.fixture(params=["eager"])
def compiler(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> CompileCounterWithBackend:
    """Compiles layers and, as on a GPU, attention; counts how often."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(request.param)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    attention = torch.compile(flex.flex_attention, dynamic=False)
    monkeypatch.setattr(flex, "flex_attention", attention)
    return counter


def adapted(kind: str, layers: int = 2, dropout: float = 0.0) -> Any:
    """A model of which all layers but the last are compiled."""
    config = tiny_config(kind)
    config.num_hidden_layers = layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
        adapt(model, LoraSettings(target_modules="all-linear", dropout=dropout))
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.1)
    return model


def logits_and_gradients(runner: Runner, trees: list[Tree]) -> list[torch.Tensor]:
    logits, _ = runner.answer_logits(trees)
    weights = [weight for weight in runner.model.parameters() if weight.requires_grad]
    return [logits, *torch.autograd.grad(logits.logsumexp(dim=1).sum(), weights)]


@pytest.mark.parametrize(
    ("kind", "compiler"), [("gpt2", "aot_eager"), ("llama", "eager")], indirect=["compiler"]
)
def test_they_train_as_before_and_are_compiled_once_a_bucket(
    kind: str,
    trees: list[Tree],
    compiler: CompileCounterWithBackend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = adapted(kind, layers=4)
    batches = [trees[1:], trees[:1], trees]
    expected = [logits_and_gradients(TreeRunner(model), batch) for batch in batches]
    runner = BucketRunner(model)
    assert len({runner.size(batch) for batch in batches}) == 1
    with caplog.at_level(logging.INFO, "loraqa"):
        assert compile_layers(runner, STEPS)
    assert caplog.messages == ["Compiling the layers, which takes a minute or so."]
    actual = [logits_and_gradients(runner, batch) for batch in batches]
    torch.testing.assert_close(actual, expected)
    # The lowest layer, whose input wants no gradient, and the others; attention by itself at first,
    # and in the last layer.
    assert compiler.frame_count == 4
    logits_and_gradients(runner, trees * 3)
    assert compiler.frame_count == 7


def test_decoding_does_without_them(
    prompts: list[Tree], compiler: CompileCounterWithBackend
) -> None:
    def decode(runner: Runner) -> tuple[torch.Tensor, torch.Tensor]:
        session = runner.session(prompts)
        prompted = session.prefill()
        return prompted, session.advance(prompted.argmax(dim=1))

    model = adapted("gpt2")
    expected = decode(TreeRunner(model))
    runner = BucketRunner(model)
    torch.testing.assert_close(decode(runner), expected)
    assert compile_layers(runner, STEPS)
    compiled = compiler.frame_count
    torch.testing.assert_close(decode(runner), expected)
    assert compiler.frame_count == compiled


def test_what_was_checked_is_what_trains(
    trees: list[Tree], compiler: CompileCounterWithBackend
) -> None:
    model = adapted("gpt2")
    runner = BucketRunner(model)
    before = [layer.lora_B.clone() for layer in lora_layers(model).values()]
    assert compile_layers(runner, STEPS)
    after = [layer.lora_B for layer in lora_layers(model).values()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    compiled = compiler.frame_count
    for layer in lora_layers(model).values():
        layer.train()
    logits_and_gradients(runner, trees)
    assert compiler.frame_count == compiled


@pytest.mark.usefixtures("compiler")
def test_dropout_is_drawn_anew_in_each_step(trees: list[Tree]) -> None:
    model = adapted("gpt2", dropout=0.5)
    runner = BucketRunner(model)
    assert compile_layers(runner, STEPS)
    for layer in lora_layers(model.transformer.h[0]).values():
        layer.train()
    first, second = (runner.answer_logits(trees)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_a_compiler_that_fails_leaves_the_layers_as_they_were(
    trees: list[Tree], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no triton\nand much more")

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    runner = BucketRunner(adapted("gpt2"))
    expected = logits_and_gradients(runner, trees)
    with caplog.at_level(logging.INFO, "loraqa"):
        assert not compile_layers(runner, STEPS)
    assert "Layers are not compiled: no triton." in caplog.text
    torch.testing.assert_close(logits_and_gradients(runner, trees), expected)


def test_a_compiler_that_is_wrong_leaves_the_layers_as_they_were(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def doubled(layer: Any) -> None:
        forward = layer.forward
        layer.forward = lambda *args, **kwargs: 2 * forward(*args, **kwargs)

    monkeypatch.setattr(compiled_layers, "_compile", doubled)
    model = adapted("gpt2")
    with caplog.at_level(logging.INFO, "loraqa"):
        assert not compile_layers(BucketRunner(model), STEPS)
    assert "Layers are not compiled: gradients are " in caplog.text
    assert all("forward" not in vars(layer) for layer in model.transformer.h)


def test_a_gradient_that_a_new_adapter_hides_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def doubled(layer: Any) -> None:
        layer.forward = layer.forward
        for adapter in lora_layers(layer).values():
            adapter.lora_A.register_hook(lambda gradient: 2 * gradient)

    monkeypatch.setattr(compiled_layers, "_compile", doubled)
    model = adapted("gpt2")
    for layer in lora_layers(model).values():
        torch.nn.init.zeros_(layer.lora_B)
    assert not compile_layers(BucketRunner(model), STEPS)


@pytest.mark.parametrize(("kind", "steps"), [(BucketRunner, 10), (TreeRunner, STEPS)])
def test_few_steps_or_rows_of_any_length_are_not_worth_it(
    kind: type[TreeRunner], steps: int, compiler: CompileCounterWithBackend
) -> None:
    model = adapted("gpt2")
    assert not compile_layers(kind(model), steps)
    assert all("forward" not in vars(layer) for layer in model.transformer.h)
    assert compiler.frame_count == 0
