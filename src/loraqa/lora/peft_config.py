"""`adapter_config.json`: PEFT's (0.21) description of an adapter."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.errors import InputError
from loraqa.files import read_json
from loraqa.lora.activated import ActivatedLinear
from loraqa.lora.dora import DoraLinear
from loraqa.lora.layer import LoraLinear
from loraqa.lora.settings import ADAPTER_CONFIG
from loraqa.lora.targets import all_linear, first_match, linear_layers

# PEFT's keys that do not change the output of a trained adapter.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "runtime_config",
        "task_type",
    }
)
_MERGED = "merge the adapter into its base with PEFT, and give the merged model"
# PEFT's other initialisations change the base's weights too (PiSSA, OLoRA, CorDA, LoftQ).
_INITIAL_DRAWS = (True, False, "gaussian", "eva", "orthogonal")


class PeftConfig(BaseModel):
    """The keys of `adapter_config.json` that define what a LoRA adapter computes.

    `rank_pattern` and `alpha_pattern` override `r` and `lora_alpha` for some layers. Their keys are
    regular expressions for the end of a layer's name. `layers_to_transform` and `layers_pattern`
    choose some of the model's layers by number, and `exclude_modules` leaves out modules. With
    `alora_invocation_tokens` the adapter is an activated LoRA.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0, allow_inf_nan=False)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: str | list[str]
    exclude_modules: str | list[str] = []
    layers_to_transform: int | list[int] = []
    layers_pattern: str | list[str] = []
    alora_invocation_tokens: list[int] | None = Field(default=None, min_length=1)
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}

    @field_validator(
        "target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"
    )
    @classmethod
    def _patterns_compile(cls, value: Any) -> Any:
        for pattern in _as_list(value):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f'"{pattern}" is not a valid regular expression ({error})'
                ) from None
        return value

    @classmethod
    def read(cls, folder: Path) -> "PeftConfig":
        """Read the configuration of the adapter in `folder`.

        Raises `InputError` if it is missing, broken, or asks for more than LoRA or DoRA.
        """
        path = folder / ADAPTER_CONFIG
        values = read_json(path)
        if not isinstance(values, dict):
            raise InputError(f"{path} is not a JSON object; write the adapter again.")
        if values.get("use_dora") and values.get("alora_invocation_tokens"):
            raise InputError(
                f"{path} asks for DoRA and an activated LoRA, which exclude each other; write the "
                "adapter again."
            )
        try:
            return cls(**_known_values(path, values))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                f"{path}: {first['loc'][0]}: {first['msg']}; write the adapter again."
            ) from None

    def targets(self, model: PreTrainedModel) -> list[str]:
        """Return the names of the model's linear layers that the adapter changes."""
        chosen = self._chosen(model)
        return [name for name in chosen if not _is_called(name, self.exclude_modules)]

    def _chosen(self, model: PreTrainedModel) -> list[str]:
        """Return the names that `target_modules` and the layers' numbers choose, as PEFT does.

        PEFT looks at the numbers only where a target is the ending of a longer name.
        """
        targets = self.target_modules
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return all_linear(model)
        names = [name for name in linear_layers(model) if _is_called(name, targets)]
        if isinstance(targets, str):
            return names
        return [name for name in names if name in targets or self._is_numbered(name)]

    def _is_numbered(self, name: str) -> bool:
        """Return whether a name is in one of the layers to transform; if none are named, in any."""
        if self.layers_to_transform == []:
            return True
        numbered = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in _as_list(self.layers_pattern)]
        found = (re.match(pattern, name) for pattern in numbered or [r".*?\.[^.]*\.(\d+)\."])
        first = next((match for match in found if match), None)
        return first is not None and int(first[1]) in _as_list(self.layers_to_transform)

    def rank_of(self, name: str) -> int:
        """Return the rank of the layer called `name`."""
        return first_match(self.rank_pattern, name, self.r)

    def alpha_of(self, name: str) -> float:
        """Return α of the layer called `name`."""
        return first_match(self.alpha_pattern, name, self.lora_alpha)


def describe(
    model: nn.Module, layers: dict[str, LoraLinear], base_name: str | None, revision: str | None
) -> dict[str, Any]:
    """Return the `adapter_config.json` of the adapter that consists of `layers`."""
    ranks = {name: plain_rank(layer) for name, layer in layers.items()}
    alphas = {name: _json_number(plain_alpha(layer)) for name, layer in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    one = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": one.dropout,
        "use_rslora": one.rank_stabilised,
        "use_dora": isinstance(one, DoraLinear),
        "target_modules": shortest_endings(model, layers),
        "rank_pattern": _pattern(model, ranks, rank),
        "alpha_pattern": _pattern(model, alphas, alpha),
        "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
        **_activation(one),
    }


def _activation(layer: LoraLinear) -> dict[str, Any]:
    """Return PEFT's key for an activated LoRA."""
    if not isinstance(layer, ActivatedLinear):
        return {}
    return {"alora_invocation_tokens": list(layer.invocation)}


def plain_rank(layer: LoraLinear) -> int:
    """Return the rank of the plain LoRA on the whole layer that equals the layer's k parts.

    PEFT does not know parts, but k pairs (A, B) of rank r equal one pair of rank k·r: the A
    stacked, each B in its own rows and columns, 0 elsewhere.
    """
    return layer.rank * len(layer.parts)


def plain_alpha(layer: LoraLinear) -> float:
    """Return the α that gives that plain LoRA the layer's scaling."""
    k = len(layer.parts)
    return layer.alpha * (math.sqrt(k) if layer.rank_stabilised else k)


def shortest_endings(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the shortest endings, in whole components, that match only the modules `names`."""
    wanted = set(names)
    modules = [name for name, _ in model.named_modules()]
    endings: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        candidates = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        endings[next(e for e in candidates if wanted.issuperset(_ending_in(e, modules)))] = None
    return list(endings)


def _ending_in(ending: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{ending}")]


def _pattern(model: nn.Module, values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Return PEFT's pattern for the layers whose value is not the usual one."""
    unusual = {value for value in values.values() if value != usual}
    return {
        ending: value
        for value in unusual
        for ending in shortest_endings(model, [name for name in values if values[name] == value])
    }


def _is_called(name: str, names: str | list[str]) -> bool:
    """Return whether a regular expression matches a name, or one of a list is its ending."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(f".{name}".endswith(f".{ending}") for ending in names)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | dict) else [value]


def _known_values(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for a `PeftConfig`; raise `InputError` if there are others."""
    if values.get("peft_type") != "LORA":
        raise InputError(
            f"{path}: peft_type is {values.get('peft_type')!r}, but loraqa reads only 'LORA'; "
            f"{_MERGED}."
        )
    if values.get("init_lora_weights", True) not in _INITIAL_DRAWS:
        raise InputError(
            f"{path}: init_lora_weights is {values['init_lora_weights']!r}, which changes the base "
            "model too; convert the adapter to plain LoRA with PEFT first."
        )
    known = PeftConfig.model_fields.keys() | _WITHOUT_EFFECT | {"peft_type", "init_lora_weights"}
    for key in values.keys() - known:
        if values[key] and values[key] != "none":
            raise InputError(
                f"{path}: {key} is {values[key]!r}, but loraqa does not know it; {_MERGED}."
            )
    return {
        key: value
        for key, value in values.items()
        if key in PeftConfig.model_fields and value is not None
    }


def _json_number(value: float) -> float:
    """Return a whole number as an int, as PEFT writes α."""
    return int(value) if value == int(value) else value
