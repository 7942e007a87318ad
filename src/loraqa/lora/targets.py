"""Select the linear layers of a model to adapt, and the parts of fused projections."""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.errors import InputError, did_you_mean
from loraqa.lora.layer import Part, features, lora_layers

_N = TypeVar("_N", int, float)

# A group is all linear layers, except the output head, whose names contain one of its words.
_GROUPS = {
    "all-linear": ("",),
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "feed_forward", "ffn"),
}

# The equal parts of fused projections, in the order of their output rows.
_FUSED = {("gpt2", "c_attn"): ("q", "k", "v")}

_WITH_PARTS = re.compile(r"(?P<pattern>.+)\[(?P<parts>[a-z]+(,[a-z]+)*)\]")


def linear_layers(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """Return the `nn.Linear` and `Conv1D` layers of the model by name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def all_linear(model: PreTrainedModel) -> list[str]:
    """Return the names of all linear layers except the output head, as PEFT's `all-linear`."""
    head = model.get_output_embeddings()
    return [name for name, layer in linear_layers(model).items() if layer is not head]


def select(model: PreTrainedModel, targets: Iterable[str]) -> dict[str, tuple[Part, ...]]:
    """Return the layers that `targets` name, in the model's order, each with its parts to adapt.

    `LoraSettings` documents the syntax of targets. Raises `InputError` if a target matches nothing,
    if the model lacks a part, if it is adapted already, or if `check_weights` raises it.
    """
    check_unadapted(model)
    layers = linear_layers(model)
    chosen: dict[str, set[Part]] = defaultdict(set)
    for target in targets:
        pattern, part_names = _split(target)
        for name in _matching(model, pattern):
            chosen[name] |= _parts(model, name, part_names)
    check_weights(model, chosen)
    return {name: _in_order(name, chosen[name]) for name in layers if name in chosen}


def by_pattern(
    setting: str, patterns: Mapping[str, _N], usual: _N, names: Collection[str]
) -> dict[str, _N]:
    """Return the value of each of the layers `names`, as `first_match` finds it.

    Raises `InputError` if one of the patterns, which are those of `setting`, matches no layer.
    """
    for pattern in patterns:
        if not _ending_in(pattern, names, setting):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise InputError(
                f'No adapted layer is called "{pattern}"{did_you_mean(pattern, known)}; {setting} '
                f"can name {', '.join(known)}."
            )
    return {name: first_match(patterns, name, usual) for name in names}


def first_match(patterns: Mapping[str, _N], name: str, usual: _N) -> _N:
    """Return the value of the first pattern that matches the end of a layer's name, as in PEFT."""
    return next((patterns[p] for p in patterns if _ending(p).fullmatch(name)), usual)


def check_unadapted(model: nn.Module) -> None:
    """Raise `InputError` if the model has an adapter."""
    if lora_layers(model):
        raise InputError("This model has an adapter already; unload it first.")


def check_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `InputError` if the weight of one of the layers `names` is tied or quantised."""
    owners = defaultdict(list)
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(parameter_name.rpartition(".")[0])
    for name in names:
        weight: Any = model.get_submodule(name).weight
        others = [owner for owner in owners[id(weight)] if owner != name]
        if others:
            raise InputError(
                f"{name} shares its weight with {others[0]} (tied embeddings), which merging would "
                f"change too; leave {name} out of target_modules."
            )
        if not weight.is_floating_point():
            raise InputError(
                f"The weight of {name} is quantised ({weight.dtype}); load the model in bf16, "
                "fp16 or fp32."
            )


def check_no_head(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Raise `InputError` if the output head is one of the layers `names`.

    The head computes only tokens that predict, so an activated LoRA cannot find its tokens there.
    """
    head = model.get_output_embeddings()
    for name in names:
        if model.get_submodule(name) is head:
            raise InputError(
                f"{name} is the output head, which an activated LoRA cannot adapt; leave it out of "
                "target_modules."
            )


def _split(target: str) -> tuple[str, tuple[str, ...]]:
    """Split `c_attn[q,v]` into `c_attn` and (q, v)."""
    match = _WITH_PARTS.fullmatch(target)
    return (match["pattern"], tuple(match["parts"].split(","))) if match else (target, ())


def _matching(model: PreTrainedModel, pattern: str) -> list[str]:
    if pattern in _GROUPS:
        words = _GROUPS[pattern]
        names = [name for name in all_linear(model) if any(word in name for word in words)]
    else:
        names = _ending_in(pattern, linear_layers(model), "target_modules")
    if not names:
        raise _unknown(model, pattern)
    return names


def _ending_in(pattern: str, names: Iterable[str], setting: str) -> list[str]:
    try:
        ending = _ending(pattern)
    except re.error as error:
        raise InputError(
            f'"{pattern}" in {setting} is not a valid regular expression ({error}).'
        ) from None
    return [name for name in names if ending.fullmatch(name)]


def _ending(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of all names whose last whole components a pattern matches."""
    return re.compile(rf"(.*\.)?({pattern})")


def _unknown(model: PreTrainedModel, pattern: str) -> InputError:
    known = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
    others = [name for name in (*known, *_GROUPS) if name != pattern]
    nearest = difflib.get_close_matches(pattern, others, n=1)
    hint = f' (did you mean "{nearest[0]}"?)' if nearest else ""
    return InputError(
        f'No linear layer of this model is called "{pattern}"{hint}; target_modules can be '
        f"{', '.join(known)}, or a group: {', '.join(_GROUPS)}."
    )


def _parts(model: PreTrainedModel, name: str, part_names: tuple[str, ...]) -> set[Part]:
    width, height = features(model.get_submodule(name))
    if not part_names:
        return {Part(0, height)}
    known = _FUSED.get((model.config.model_type, name.rpartition(".")[2]), ())
    if height != len(known) * width or not set(part_names) <= set(known):
        has = f"its parts are {', '.join(known)}" if known else "it is not known to be fused"
        raise InputError(f"{name} has no parts [{','.join(part_names)}] to adapt alone; {has}.")
    starts = {part: known.index(part) * width for part in part_names}
    return {Part(start, start + width, part) for part, start in starts.items()}


def _in_order(name: str, parts: set[Part]) -> tuple[Part, ...]:
    if len(parts) > 1 and any(not part.name for part in parts):
        raise InputError(
            f"target_modules names both {name} as a whole and parts of it; keep one of the two."
        )
    return tuple(sorted(parts, key=lambda part: part.start))
