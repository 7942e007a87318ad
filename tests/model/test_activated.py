"""An activated LoRA on trees is PEFT's on separate examples: logits, gradients, answers, files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.conftest import assert_near, tiny_model
from tests.model.conftest import padded_examples
from tests.model.test_session import rows_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraqa.errors import InputError
from loraqa.lora.activated import ActivatedLinear, acting_on, invocation_of
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import load_adapter, save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.merge import merge, merge_and_unload
from loraqa.lora.settings import LoraSettings
from loraqa.model.attention import TREE_ATTENTION
from loraqa.model.choose import choose_runner
from loraqa.model.runner import (
    PaddedRunner,
    RecomputingRunner,
    StateRecorder,
    TreeRunner,
    tree_logits,
)
from loraqa.model.trees import PackedTreeAttention
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.invocation import check_invocation, invocation_of_questions
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Branch, Tree

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:fan_in_fan_out:UserWarning"
)

KINDS = ["gpt2", "llama"]
RUNNERS = [TreeRunner, PaddedRunner, RecomputingRunner]
# transformers keeps rotary tables in fp32, whatever the model's dtype.
TOLERANCE = {
    ("gpt2", "float64"): 1e-10,
    ("llama", "float64"): 1e-6,
    ("gpt2", "float32"): 1e-5,
    ("llama", "float32"): 1e-5,
}


@pytest.fixture
def invocation(encoder: PromptEncoder) -> list[int]:
    return invocation_of_questions(encoder)


def stirred(model: Any) -> Any:
    """Fill every A and B, ours or PEFT's, with the same noise."""
    generator = torch.Generator().manual_seed(4)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def ours(kind: str, invocation: list[int], dtype: str = "float64", **options: Any) -> Any:
    model = tiny_model(kind, dtype)
    settings = LoraSettings(rank=3, alpha=5, activated=True, **options)
    adapt(model, settings, invocation=invocation)
    return stirred(model)


def by_peft(kind: str, invocation: list[int], dtype: str = "float64", **options: Any) -> Any:
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        alora_invocation_tokens=invocation,
        **options,
    )
    model = get_peft_model(tiny_model(kind, dtype), config, autocast_adapter_dtype=False)
    model.set_attn_implementation("eager")
    return stirred(model)


def logits_of_examples(model: Any, trees: list[Tree]) -> tuple[Tensor, Tensor]:
    """Logits that predict answers, and the answers, as PEFT computes each question's row."""
    input_ids, mask, labels = padded_examples(trees)
    predicting = labels[:, 1:] != -100
    logits = model(input_ids=input_ids, attention_mask=mask).logits[:, :-1]
    return logits[predicting], labels[:, 1:][predicting]


def gradients(model: Any, logits: Tensor, targets: Tensor) -> Tensor:
    weights = [weight for name, weight in model.named_parameters() if "lora_" in name]
    found = torch.autograd.grad(cross_entropy(logits, targets), weights)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("kind", "dtype"), TOLERANCE)
def test_logits_and_gradients_are_pefts(
    kind: str, dtype: str, runner: type[Any], trees: list[Tree], invocation: list[int]
) -> None:
    model, theirs = ours(kind, invocation, dtype), by_peft(kind, invocation, dtype)
    logits, targets = runner(model).answer_logits(trees)
    expected, same_targets = logits_of_examples(theirs, trees)
    assert torch.equal(targets, same_targets)
    near = TOLERANCE[kind, dtype]
    assert_near(logits, expected, near)
    assert_near(gradients(model, logits, targets), gradients(theirs, expected, targets), near)


def test_a_plain_lora_would_differ(trees: list[Tree], invocation: list[int]) -> None:
    model = tiny_model("gpt2", "float64")
    adapt(model, LoraSettings(rank=3, alpha=5))
    plain, _ = TreeRunner(stirred(model)).answer_logits(trees)
    activated, _ = TreeRunner(ours("gpt2", invocation)).answer_logits(trees)
    assert (plain - activated).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_written_as_by_peft(
    kind: str, runner: type[Any], prompts: list[Tree], invocation: list[int]
) -> None:
    theirs, rows = by_peft(kind, invocation), rows_of(prompts)
    session, logits = runner(ours(kind, invocation)).prefill(prompts)
    kept = torch.tensor([2, 0, 3])
    for token in (5, 7, 9):
        with torch.no_grad():
            alone = [theirs(input_ids=torch.tensor([ids])).logits[0, -1] for ids in rows]
        assert_near(logits, torch.stack(alone), TOLERANCE[kind, "float64"])
        if token == 7:
            session, rows = session.fork(kept), [rows[row] for row in kept]
        rows = [[*ids, token] for ids in rows]
        logits = session.advance(torch.full((len(rows),), token))


@pytest.mark.parametrize("kind", KINDS)
def test_a_trunk_has_the_states_of_the_base(
    kind: str, trees: list[Tree], invocation: list[int]
) -> None:
    batch, found = collate_trees(trees), []
    for model in (ours(kind, invocation), tiny_model(kind, "float64")):
        model.set_attn_implementation(TREE_ATTENTION)
        recorded = StateRecorder(PackedTreeAttention(batch, model.device))
        with torch.no_grad():
            tree_logits(model, batch, recorded)
        found.append(recorded.states)
    trunk = ~batch.in_branch[0]
    for layer, states in found[0].items():
        for activated, base in zip(states, found[1][layer], strict=True):
            assert torch.equal(activated[:, trunk], base[:, trunk])
            assert layer == 0 or not torch.equal(activated[:, ~trunk], base[:, ~trunk])


@pytest.mark.parametrize("options", [{}, {"rank_stabilised": True}, {"target_modules": "mlp"}])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_we_write(
    kind: str, options: Any, trees: list[Tree], invocation: list[int], tmp_path: Path
) -> None:
    model = ours(kind, invocation, **options)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model(kind, "float64"), tmp_path)
    assert theirs.peft_config["default"].alora_invocation_tokens == invocation
    logits, _ = TreeRunner(model).answer_logits(trees)
    assert_near(logits, logits_of_examples(theirs, trees)[0], TOLERANCE[kind, "float64"])


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.2}])
@pytest.mark.parametrize("kind", KINDS)
def test_we_read_what_peft_writes(
    kind: str, options: Any, trees: list[Tree], invocation: list[int], tmp_path: Path
) -> None:
    theirs = by_peft(kind, invocation, **options).eval()
    theirs.save_pretrained(tmp_path)
    model = tiny_model(kind, "float64")
    load_adapter(model, tmp_path)
    assert invocation_of(model) == tuple(invocation)
    runner = choose_runner(model.eval(), 200)
    assert isinstance(runner, TreeRunner)
    logits, _ = runner.answer_logits(trees)
    assert_near(logits, logits_of_examples(theirs, trees)[0], TOLERANCE[kind, "float64"])


def test_peft_acts_later_where_a_question_holds_the_invocation_again(
    trees: list[Tree], invocation: list[int]
) -> None:
    trunk, branch = trees[0].trunk, trees[0].branches[0]
    asked = Branch("", np.concatenate([branch.prompt, invocation, [7]]), branch.answer)
    quoted = Tree(np.concatenate([trunk, invocation, [7]]), (branch,), 0, (0, 0))
    model, theirs = ours("gpt2", invocation), by_peft("gpt2", invocation)

    def both(tree: Tree) -> tuple[Tensor, Tensor]:
        return TreeRunner(model).answer_logits([tree])[0], logits_of_examples(theirs, [tree])[0]

    again = Tree(trunk, (asked,), 0, (0, 0))
    activated, peft = both(again)
    assert (activated - peft).norm() > 1e-3 * peft.norm()
    # As if everything before the last occurrence were the context.
    late = Branch("", asked.prompt[len(branch.prompt) :], asked.answer)
    cut = Tree(np.concatenate([trunk, branch.prompt]), (late,), 0, (0, 0))
    assert_near(TreeRunner(model).answer_logits([cut])[0], peft, 1e-10)
    # In a context it changes nothing.
    assert_near(*both(quoted), 1e-10)


def test_dropout_acts_on_branches_alone(invocation: list[int]) -> None:
    model = ours("gpt2", invocation, dropout=0.5).train()
    layer = next(iter(lora_layers(model).values()))
    assert isinstance(layer, ActivatedLinear)
    x = torch.ones(4, layer.in_features, dtype=torch.float64)
    base = layer.base(x)
    with acting_on(torch.tensor([[False, False, True, True]])):
        change = layer(x) - base
    assert not change[:2].any()
    assert change[2:].any(dim=1).all()
    assert not torch.equal(change[2], change[3])


def test_a_layer_that_gets_some_of_the_tokens_is_refused(invocation: list[int]) -> None:
    layer = next(iter(lora_layers(ours("gpt2", invocation)).values()))
    x = torch.ones(3, layer.in_features, dtype=torch.float64)
    with acting_on(torch.ones(1, 4, dtype=torch.bool)), pytest.raises(InputError) as caught:
        layer(x)
    assert "gets 3 tokens where the model gets 4" in str(caught.value)


@pytest.mark.parametrize("use", [merge, merge_and_unload])
def test_it_cannot_be_merged(use: Callable[..., object], invocation: list[int]) -> None:
    model = ours("gpt2", invocation)
    with pytest.raises(InputError) as caught:
        use(model, torch.zeros(1, 3, dtype=torch.long))
    assert str(caught.value) == (
        "An activated LoRA (lora.activated) leaves contexts to the base's weights, so it cannot be "
        "merged into them; export it with --format peft, or train without lora.activated."
    )
    assert lora_layers(model)


def test_it_needs_an_invocation() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="needs the ids of its invocation"):
        adapt(model, LoraSettings(rank=3, activated=True))
    assert not lora_layers(model)


def test_the_head_cannot_be_adapted(invocation: list[int]) -> None:
    model = tiny_model("llama")
    settings = LoraSettings(rank=3, activated=True, target_modules=("lm_head", "q_proj"))
    with pytest.raises(InputError, match=r"^lm_head is the output head, which an activated LoRA"):
        adapt(model, settings, invocation=invocation)
    assert not lora_layers(model)


@pytest.mark.parametrize(
    ("template", "begins"),
    [
        ("Context: {context} Question: {question} Answer: {answer}", " Question:"),
        ("{context}\nQ: {question}\nA: {answer}", "\nQ:"),
        ("{context}{<|endoftext|>}{question}{<|endoftext|>}\nA: {answer}", "<|endoftext|>"),
    ],
)
def test_the_invocation_is_what_all_questions_begin_with(
    encoder: PromptEncoder, template: str, begins: str
) -> None:
    tokenizer = encoder.tokenizer
    found = invocation_of_questions(PromptEncoder(tokenizer, Template(template), 250, 20))
    # The tiny tokenizer encodes a blank before a word alone.
    assert "".join(map(tokenizer.show, found)).rstrip(" ") == begins


def test_a_template_whose_questions_begin_differently_is_refused(encoder: PromptEncoder) -> None:
    template = Template("{context}{question} -> {answer}")
    with pytest.raises(InputError) as caught:
        invocation_of_questions(PromptEncoder(encoder.tokenizer, template, 250, 20))
    assert "has no text before {question} from which an activated LoRA" in str(caught.value)


def test_an_adapter_that_acts_from_elsewhere_is_refused(
    encoder: PromptEncoder, invocation: list[int]
) -> None:
    check_invocation(encoder, tuple(invocation))
    check_invocation(encoder, tuple(invocation[:1]))
    with pytest.raises(InputError, match=r"^The adapter acts from .* begins questions with"):
        check_invocation(encoder, (*invocation, 7))
