"""What each optimisation gains: ours with one of them taken out.

A step of training, or answers to dev questions.
"""

from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers import PreTrainedModel

from benchmarks import ours
from benchmarks.base import MAX_ANSWER_TOKENS, Task
from benchmarks.harness import Conclusion, Groups, Side, Suite, best
from benchmarks.suites import Scale, reading
from loraqa.lora.layer import LoraLinear, Part, add_update
from loraqa.model.attention import PackedTrees
from loraqa.prompt.batch import TreeBatch

# Gains are as small as the noise of a single one.
_STEPS = 4
NOTHING = "as it is"
TREES = "trees: padded rows instead"


def whole_last_layer(model: PreTrainedModel, batch: TreeBatch, trees: PackedTrees) -> Tensor:
    """In place of `wanted_logits`: the head alone looks at the wanted tokens only."""
    logits: Tensor = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        trees=trees,
        logits_to_keep=batch.supervised,
        use_cache=False,
    ).logits
    return logits[0]


def plain_lora(layer: LoraLinear, x: Tensor) -> Tensor:
    """In place of `LoraLinear._adapted`: what autograd makes of the formula."""
    a, b = layer.lora_A.to(x.dtype), (layer.lora_B * layer.scaling).to(x.dtype)
    y: Tensor = layer.base(x)
    return y + (x @ a.t()) @ b.t()


def bias_by_itself(
    y: Tensor, hidden: Tensor, b: Tensor, parts: tuple[Part, ...], bias: Tensor
) -> None:
    """In place of `_add_update_and_bias`: two passes over y."""
    add_update(y.add_(bias), hidden, b, parts)


@lru_cache(maxsize=256)
def _hidden(bias: Tensor) -> Tensor:
    """Made once for all layers, as the bias is."""
    return bias != 0


def mask_afterwards(bias: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """In place of `baddbmm`: the usual `masked_fill`."""
    return (queries @ keys).masked_fill_(_hidden(bias), -torch.inf)


def not_taken(_: torch.dtype) -> None:
    """In place of the check of a kernel, which is not used then."""
    raise AssertionError("taken out")


PATCHES: dict[str, tuple[str, Any]] = {
    "last layer at wanted tokens: everywhere instead": (
        "loraqa.model.runner.wanted_logits",
        whole_last_layer,
    ),
    "attention by products: PyTorch's fused one instead": (
        "loraqa.speed.cpu.products._products_pay",
        lambda *_: False,
    ),
    "causal products by 128 queries: all at once instead": (
        "loraqa.speed.cpu.products._QUERIES_AT_ONCE",
        2**31,
    ),
    "in-place LoRA with its own backward: autograd's instead": (
        "loraqa.lora.layer.LoraLinear._adapted",
        plain_lora,
    ),
    "mask added in the product: filled in afterwards instead": (
        "torch.baddbmm",
        mask_afterwards,
    ),
    "bias added in LoRA's product: by itself instead": (
        "loraqa.lora.layer._add_update_and_bias",
        bias_by_itself,
    ),
    "compiled GELU: PyTorch's instead": ("loraqa.speed.cpu.gelu._check", not_taken),
    "GELU in one kernel: transformers' five instead": (
        "loraqa.model.load.fuse_gelu",
        lambda _: None,
    ),
    "freed memory kept: given back instead": (
        "loraqa.model.load.keep_freed_memory",
        lambda: None,
    ),
}


def step(task: dict[str, Any], without: str) -> dict[str, Any]:
    """`ours.trees` without one optimisation, a key of `PATCHES`, `TREES`, or `NOTHING`."""
    if without == TREES:
        return ours.padded(task)
    with ExitStack() as stack:
        if without in PATCHES:
            stack.enter_context(patch(*PATCHES[without]))
        return ours.trees(task)


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """In place of `PrepackedLinear`: PyTorch's own."""
    height, width = weight.shape
    layer: nn.Linear = skip_init(nn.Linear, width, height, bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


# Of answering.
ANSWERING: dict[str, tuple[str, Any]] = {
    "compiled GELU: PyTorch's instead": ("loraqa.speed.cpu.gelu._check", not_taken),
    "a kernel for rows: tensor operations instead": (
        "loraqa.model.choose_rows._check_compiled",
        not_taken,
    ),
    "prepacked weights: laid out anew for each product instead": (
        "loraqa.speed.cpu.prepacked.PrepackedLinear",
        plain_linear,
    ),
    "room for rows to grow: made anew for each token instead": (
        "loraqa.speed.cpu.rows.ROOM",
        1,
    ),
}


def answer(options: dict[str, Any], without: str) -> dict[str, Any]:
    """`ours.read` without one optimisation, a key of `ANSWERING`, or `NOTHING`."""
    with ExitStack() as stack:
        if without in ANSWERING:
            stack.enter_context(patch(*ANSWERING[without]))
        return ours.read(**options)


def answering(folder: str, scale: Scale, precision: str) -> Suite:
    """Answers with everything, and with everything but one."""
    options = reading(folder, "asked.json", precision, MAX_ANSWER_TOKENS)
    return Suite(
        "ablation-answering",
        {"asked.json": ("sample", {"split": "dev", "questions": scale.answered})},
        {
            without: Side("ablation.answer", "answers", {"options": options, "without": without})
            for without in (NOTHING, *ANSWERING)
        },
        scale.rounds,
        _conclude,
    )


def ablation(folder: str, scale: Scale, precision: str) -> Suite:
    """Everything, and everything but one."""
    name = "ablation"
    reference = f"{folder}/{name}.safetensors"
    task = asdict(Task(folder, "all-linear", "ablation.json", _STEPS, precision, reference))
    return Suite(
        name,
        {"ablation.json": ("sample", {"split": "train", "questions": scale.questions})},
        {
            without: Side("ablation.step", "a step", {"task": task, "without": without})
            for without in (NOTHING, TREES, *PATCHES)
        },
        scale.rounds,
        _conclude,
    )


def _conclude(groups: Groups) -> Conclusion:
    seconds = {name: best(group).median_seconds for name, group in groups.items()}
    as_it_is = seconds.pop(NOTHING)
    return Conclusion({f"gain of {name}": took / as_it_is for name, took in seconds.items()})
