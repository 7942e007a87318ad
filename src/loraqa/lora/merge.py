"""Merge the update into the weights, check that the logits stay the same, and undo it."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraqa.errors import LoraqaError
from loraqa.lora.activated import check_mergeable
from loraqa.lora.int8 import check_full_precision
from loraqa.lora.layer import lora_layers
from loraqa.lora.pissa import check_whole_weights


def merge(model: PreTrainedModel, input_ids: Tensor) -> float:
    """Make every adapted layer compute with W + s BA; return the largest change of a logit.

    The change is measured on `input_ids` (n, length) against the unmerged model. It is rounding
    only: if it exceeds the square root of the dtype's epsilon, relative to the largest logit, the
    model is unmerged and `LoraqaError` raised. Merging needs the memory of the adapted weights
    once more, and leaves the model in eval mode. Raises `InputError` if the LoRA is activated, or
    the weights are int8.
    """
    check_mergeable(model)
    check_full_precision(model, "Merging")
    layers = lora_layers(model)
    unmerge(model)
    model.eval()
    before = _logits(model, input_ids)
    for layer in layers.values():
        layer.merge()
    change = (_logits(model, input_ids) - before).abs().max().item()
    allowed = torch.finfo(model.dtype).eps ** 0.5 * before.abs().max().item()
    # Written so that NaN fails too.
    if not change <= allowed:
        unmerge(model)
        raise LoraqaError(
            f"Merging changed a logit by {change:.3g}, but rounding to {model.dtype} explains only "
            f"{allowed:.3g}; load the base model in a wider dtype to merge."
        )
    return change


def unmerge(model: nn.Module) -> None:
    """Undo `merge` to the bit; the base's weights never changed."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def unload(model: nn.Module) -> None:
    """Remove the adapter; what remains is the frozen base model.

    Raises `InputError` if PiSSA has split its weights.
    """
    check_whole_weights(model)
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base)


def merge_and_unload(model: PreTrainedModel, input_ids: Tensor) -> float:
    """Turn an adapted model into a plain transformers model with the update in its weights.

    transformers then loads the result of `model.save_pretrained` without loraqa or PEFT. Checks,
    returns and raises as `merge` does.
    """
    change = merge(model, input_ids)
    for name, layer in lora_layers(model).items():
        layer.base.weight = nn.Parameter(layer.summed_weight(), requires_grad=False)
        model.set_submodule(name, layer.base)
    return change


@torch.no_grad()
def _logits(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=input_ids.to(model.device), use_cache=False).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
