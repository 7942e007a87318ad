"""Which linear layers of a model get an update, and which of their rows."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.errors import InputError
from loraqa.lora.layer import Rows, features, lora_layers

# A group is the linear layers, save the output head, whose name contains one of the words.
_GROUPS = {
    "all-linear": ("",),
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "feed_forward", "ffn"),
}

# Equal parts of a fused projection, in the order in which they lie along its output.
_FUSED = {("gpt2", "c_attn"): ("q", "k", "v")}

_WITH_PARTS = re.compile(r"(?P<pattern>.+)\[(?P<parts>[a-z]+(,[a-z]+)*)\]")


def linear_layers(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """Every `nn.Linear` and `Conv1D` of the model by its name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def all_linear(model: PreTrainedModel) -> list[str]:
    """The names of all linear layers but the output head, as PEFT's `all-linear`."""
    head = model.get_output_embeddings()
    return [name for name, layer in linear_layers(model).items() if layer is not head]


def select(model: PreTrainedModel, targets: Iterable[str]) -> dict[str, tuple[Rows, ...]]:
    """The layers that `targets` name, in the model's order, each with the rows chosen in it.

    `LoraSettings` says how targets are written. Raises `InputError` for a target that names
    nothing, for rows that the model does not have, for a model that is adapted already, and for
    what `check_weights` refuses.
    """
    check_unadapted(model)
    layers = linear_layers(model)
    chosen: dict[str, set[Rows]] = defaultdict(set)
    for target in targets:
        pattern, parts = _split(target)
        for name in _matching(model, pattern):
            chosen[name] |= _rows(model, name, parts)
    check_weights(model, chosen)
    return {name: _in_order(name, chosen[name]) for name in layers if name in chosen}


def check_unadapted(model: nn.Module) -> None:
    """Raise `InputError` where the model holds an adapter."""
    if lora_layers(model):
        raise InputError("This model holds an adapter already: unload that one first.")


def check_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `InputError` where the weight of one of the layers `names` is tied or quantised."""
    owners = defaultdict(list)
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(parameter_name.rpartition(".")[0])
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        others = [owner for owner in owners[id(weight)] if owner != name]
        if others:
            raise InputError(
                f"{name} shares its weight with {others[0]} (tied embeddings), which merging would "
                f"change too: leave {name} out of target_modules."
            )
        if not weight.is_floating_point():
            raise InputError(
                f"The weight of {name} is quantised ({weight.dtype}): load the model in bf16, "
                "fp16 or fp32."
            )


def _split(target: str) -> tuple[str, tuple[str, ...]]:
    """`c_attn[q,v]` into `c_attn` and (q, v)."""
    match = _WITH_PARTS.fullmatch(target)
    return (match["pattern"], tuple(match["parts"].split(","))) if match else (target, ())


def _matching(model: PreTrainedModel, pattern: str) -> list[str]:
    if pattern in _GROUPS:
        words = _GROUPS[pattern]
        names = [name for name in all_linear(model) if any(word in name for word in words)]
    else:
        names = _ending_in(pattern, linear_layers(model))
    if not names:
        raise _unknown(model, pattern)
    return names


def _ending_in(pattern: str, names: Iterable[str]) -> list[str]:
    try:
        ending = re.compile(rf"(.*\.)?({pattern})")
    except re.error as error:
        raise InputError(
            f'"{pattern}" in target_modules is not a regular expression ({error}).'
        ) from None
    return [name for name in names if ending.fullmatch(name)]


def _unknown(model: PreTrainedModel, pattern: str) -> InputError:
    known = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
    others = [name for name in (*known, *_GROUPS) if name != pattern]
    nearest = difflib.get_close_matches(pattern, others, n=1)
    hint = f' (did you mean "{nearest[0]}"?)' if nearest else ""
    return InputError(
        f'No linear layer of this model is called "{pattern}"{hint}: target_modules can be '
        f"{', '.join(known)}, or a group: {', '.join(_GROUPS)}."
    )


def _rows(model: PreTrainedModel, name: str, parts: tuple[str, ...]) -> set[Rows]:
    height, width = features(model.get_submodule(name))
    if not parts:
        return {Rows(0, width)}
    known = _FUSED.get((model.config.model_type, name.rpartition(".")[2]), ())
    if width != len(known) * height or not set(parts) <= set(known):
        has = f"its parts are {', '.join(known)}" if known else "it is not known to be fused"
        raise InputError(f"{name} has no rows [{','.join(parts)}] to adapt alone: {has}.")
    starts = {part: known.index(part) * height for part in parts}
    return {Rows(start, start + height, part) for part, start in starts.items()}


def _in_order(name: str, rows: set[Rows]) -> tuple[Rows, ...]:
    if len(rows) > 1 and any(not block.name for block in rows):
        raise InputError(
            f"target_modules names {name} both whole and by its rows: keep one of the two."
        )
    return tuple(sorted(rows, key=lambda block: block.start))
