"""A tree equals its examples with all accelerations, without each one, and without any."""

from typing import Any

import pytest
import torch
from tests.conftest import tiny_model
from tests.model.conftest import PASSAGES
from tests.model.test_runner import transformers_gradients
from tests.model.test_session import rows_of
from tests.train.conftest import settings

from loraqa.lora.adapt import adapt
from loraqa.lora.flat import FlatAdapter
from loraqa.lora.layer import lora_layers
from loraqa.model.choose import relative_error
from loraqa.model.runner import TreeRunner
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.speed import OF_MODELS
from loraqa.speed.trial import fastest

# The accelerations that can apply on a CPU.
NAMES = [name for name, module in OF_MODELS.items() if ".gpu." not in module]
WITHOUT = [(), *((name,) for name in NAMES), ("all",)]


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Any) -> PromptEncoder:
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    return PromptEncoder(tokenizer, Template(), 250, 20)


@pytest.fixture(scope="module")
def trees(encoder: PromptEncoder) -> list[Tree]:
    return encoder.encode_training(PASSAGES).trees


@pytest.fixture(scope="module")
def prompts(encoder: PromptEncoder) -> list[Tree]:
    return encoder.encode_prompts(PASSAGES, 20).trees


def adapted(kind: str) -> Any:
    """Make a tiny model whose adapter changes its logits."""
    model = tiny_model(kind)
    adapt(model, settings("lora.dropout=0").lora)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("without", WITHOUT, ids=lambda names: "+".join(names) or "nothing")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
class TestWithout:
    """Against transformers on separate rows."""

    def test_training(self, kind: str, without: tuple[str, ...], trees: list[Tree]) -> None:
        model = adapted(kind)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        expected_loss, expected = transformers_gradients(model, trees, weights)
        runner, names = fastest(TreeRunner(model), ["training", "answering"], without)
        assert not set(without) & set(names)
        by_kernel_or_products = {"compiled-trees", "attention-by-products"} & set(names)
        assert len(by_kernel_or_products) == (without != ("all",))
        flat = FlatAdapter(model)
        loss = runner.gradients(flat)([trees])()
        assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
        wanted = torch.cat([gradient.flatten() for gradient in expected])
        assert relative_error(flat.gradient, wanted) < 1e-4

    def test_answering(self, kind: str, without: tuple[str, ...], prompts: list[Tree]) -> None:
        reference = adapted(kind)
        reference.set_attn_implementation("eager")
        runner, _ = fastest(TreeRunner(adapted(kind)), ["answering"], without)
        rows = rows_of(prompts)
        session, logits = runner.prefill(prompts)
        for token in (5, 7, 9):
            with torch.no_grad():
                alone = [reference(torch.tensor([ids])).logits[0, -1] for ids in rows]
            assert relative_error(logits, torch.stack(alone)) < 1e-4
            rows = [[*ids, token] for ids in rows]
            logits = session.advance(torch.full((len(rows),), token))
