"""LoRA+ trains as PEFT's optimizer does, and leaves every A alone."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from tests.conftest import assert_near, tiny_model
from tests.train.conftest import adapted, plan, settings
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import get_cosine_schedule_with_warmup

from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import save_adapter
from loraqa.lora.flat import FlatAdapter
from loraqa.lora.settings import TENSORS
from loraqa.model.runner import TreeRunner
from loraqa.prompt.tree import Tree
from loraqa.train.loop import train
from loraqa.train.loraplus import lengthen_steps_of_b
from loraqa.train.manifest import ADAPTER, checkpoint_folder
from loraqa.train.run import RunDirectory

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:fan_in_fan_out:UserWarning"
)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_learns_what_peft_learns(trees: list[Tree], run: RunDirectory, kind: str) -> None:
    chosen = settings(
        "lora.dropout=0",
        "optimisation.b_rate_ratio=8",
        "optimisation.weight_decay=0.1",
        "optimisation.warmup=0",
        "optimisation.clip_norm=null",
    )
    ours = tiny_model(kind, "float64")
    adapt(ours, chosen.lora, chosen.seed)
    save_adapter(ours, run.path / "start")
    state = train(TreeRunner(ours), plan(trees, chosen), chosen, run)

    base = tiny_model(kind, "float64")
    theirs: Any = PeftModel.from_pretrained(base, run.path / "start", is_trainable=True)
    optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=8, loraplus_weight_decay=0.1
    )
    schedule: Any = get_cosine_schedule_with_warmup(optimizer, 0, state.step)
    runner = TreeRunner(base)
    for epoch in range(4):
        for step in plan(trees, chosen).epoch(epoch):
            logits, targets = runner.answer_logits([tree for batch in step for tree in batch])
            cross_entropy(logits, targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    theirs.save_pretrained(run.path / "peft")

    learned = load_file(checkpoint_folder(run.checkpoints, state.step) / ADAPTER / TENSORS)
    expected = load_file(run.path / "peft" / TENSORS)
    assert learned.keys() == expected.keys()
    for name, weight in learned.items():
        assert_near(weight, expected[name], 1e-9)


def stepped(ratio: float | None) -> tuple[Tensor, Tensor]:
    """Return all A and all B, each as a vector, after three steps on random gradients."""
    adapter = FlatAdapter(adapted(settings()).model)
    optimizer = torch.optim.AdamW([adapter.vector], lr=0.01, weight_decay=0.1, fused=True)
    if ratio is not None:
        lengthen_steps_of_b(optimizer, adapter, ratio)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        adapter.gradient.normal_(generator=generator)
        optimizer.step()
    a, b = (
        [weight.detach().flatten() for name, weight in adapter.weights.items() if name[-1] == kind]
        for kind in "AB"
    )
    return torch.cat(a), torch.cat(b)


def test_a_ratio_of_1_gives_the_same_bits_as_without() -> None:
    for plain, longer in zip(stepped(None), stepped(1), strict=True):
        assert torch.equal(plain, longer)


def test_a_has_the_same_bits_at_every_ratio() -> None:
    (plain_a, plain_b), (a, b) = stepped(None), stepped(8)
    assert torch.equal(plain_a, a)
    assert b.norm() > 7 * plain_b.norm()
