"""The loss of an optimizer step, against PEFT and transformers on separate padded rows."""

from typing import Any

import peft
import pytest
import torch
from tests.conftest import tiny_model
from tests.model.conftest import PASSAGES, padded_examples
from tests.train.conftest import settings
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.model.loss import accumulate, supervised_tokens
from loraqa.model.runner import PaddedRunner, TreeRunner
from loraqa.prompt.plan import pack
from loraqa.prompt.tree import Tree


def randomised(dtype: str) -> Any:
    """A tiny model whose adapter has B ≠ 0, so that A has a gradient too."""
    model = tiny_model("gpt2", dtype)
    adapt(model, settings().lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) / 10)
    return model


def peft_gradients(model: Any, folder: Any, trees: list[Tree]) -> tuple[float, list[Tensor]]:
    """Loss and gradients as a plain PEFT script has them: one row a question, padded, labels."""
    save_adapter(model, folder)
    plain = peft.PeftModel.from_pretrained(
        tiny_model("gpt2", "float64"), folder, is_trainable=True, autocast_adapter_dtype=False
    )
    input_ids, mask, labels = padded_examples(trees)
    plain.eval()
    logits = plain(input_ids=input_ids, attention_mask=mask).logits
    # Its own loss rounds logits to fp32, too coarse for what is compared here.
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    names = [
        f"base_model.model.{name}.lora_{m}.default.weight"
        for name in lora_layers(model)
        for m in "AB"
    ]
    assert gradients.keys() == set(names)
    return loss.item(), [gradients[name] for name in names]


def our_gradients(model: Any, loss: Tensor) -> tuple[float, list[Tensor]]:
    layers = lora_layers(model).values()
    gradients = [p.grad for layer in layers for p in (layer.lora_A, layer.lora_B)]
    return loss.item(), [gradient.clone() for gradient in gradients if gradient is not None]


def assert_equal(ours: tuple[float, list[Tensor]], theirs: tuple[float, list[Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-10)
    assert len(ours[1]) == len(theirs[1])
    for our, their in zip(ours[1], theirs[1], strict=True):
        assert float((our - their).norm()) <= 1e-10 * float(their.norm())


@pytest.mark.parametrize("runner", [TreeRunner, PaddedRunner])
@pytest.mark.parametrize("tokens", [10_000, 150, 1])
def test_micro_batches_give_the_gradient_of_plain_peft(
    trees: list[Tree], tmp_path: Any, runner: Any, tokens: int
) -> None:
    model = randomised("float64")
    step = pack(trees, tokens)
    assert (len(step) == 1) == (tokens == 10_000)
    ours = our_gradients(model, accumulate(runner(model), step))
    assert_equal(ours, peft_gradients(model, tmp_path, trees))


def test_supervised_tokens_are_the_answers_and_eos(trees: list[Tree], tiny_tokenizer: Any) -> None:
    questions = [question for passage in PASSAGES for question in passage.questions]
    answers = (f" {q.answers[0].text}" if q.answers else "" for q in questions)
    rows = [f"{answer}<|endoftext|>" for answer in answers]
    expected = sum(map(len, tiny_tokenizer(rows).input_ids))
    assert expected > 2 * len(rows)
    for tokens in (10_000, 150, 1):
        assert supervised_tokens(pack(trees, tokens)) == expected


def test_the_loss_of_a_bf16_model_is_summed_in_fp32(trees: list[Tree]) -> None:
    model = tiny_model("gpt2", "bfloat16")
    adapt(model, settings().lora)
    assert accumulate(TreeRunner(model), [trees]).dtype == torch.float32
