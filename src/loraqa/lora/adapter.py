"""Adapter files: `adapter_config.json` and `adapter_model.safetensors`, as in PEFT (0.21).

A layer adapted in parts is written as the plain LoRA on the whole layer that equals it, which PEFT
loads. The parts are listed in the header of the safetensors file. PEFT ignores the header and drops
it when it saves, rightly: training in PEFT may change the rest of the layer too.
"""

import os
from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.errors import InputError, counted, in_a_line
from loraqa.files import write_json, write_tensors
from loraqa.lora.activated import ActivatedLinear
from loraqa.lora.adapt import install
from loraqa.lora.described import PARTS_KEY
from loraqa.lora.dora import DoraLinear
from loraqa.lora.layer import LoraLinear, Part, features
from loraqa.lora.peft_config import PeftConfig, describe, plain_rank
from loraqa.lora.pissa import plain_layers
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS
from loraqa.lora.targets import check_no_head, check_unadapted, check_weights

_PICKLED = "adapter_model.bin"
_AGAIN = "copy the adapter again from where it came from"


class _Split(BaseModel):
    """The header's entry for a layer adapted in parts: its own α, and the parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(gt=0, allow_inf_nan=False)
    # The file format calls the parts "rows".
    rows: tuple[Part, ...] = Field(min_length=1)


_SplitByName = TypeAdapter(dict[str, _Split])


def save_adapter(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    base_name: str | None = None,
    revision: str | None = None,
) -> None:
    """Write the adapter of `model` to `folder` as PEFT would; make the folder if needed.

    `base_name` (hub name or folder) and `revision` tell PEFT's `AutoPeftModel` where the base is.
    """
    layers = plain_layers(model)
    if not layers:
        raise InputError("This model has no adapter to save; call adapt or load_adapter first.")
    write_tensors(Path(folder) / TENSORS, _plain_tensors(layers), _header(layers))
    write_json(Path(folder) / ADAPTER_CONFIG, describe(model, layers, base_name, revision))


def load_adapter(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Freeze `model` and add the adapter in `folder`, written by loraqa or PEFT.

    Raises `InputError`, and changes nothing, if the files are missing, broken, more than LoRA and
    DoRA, or made for another base model; if `model` is adapted already; or if `check_weights`
    raises it.
    """
    check_unadapted(model)
    path = Path(folder) / TENSORS
    config = PeftConfig.read(Path(folder))
    tensors, splits = _read(path)
    bases = {name: model.get_submodule(name) for name in config.targets(model)}
    check_weights(model, bases)
    if config.alora_invocation_tokens:
        check_no_head(model, bases)
    shapes = _shapes(config, bases)
    _check_keys(path, config, tensors, shapes.keys())
    _check_tensors(path, config, tensors, shapes)
    layers = {}
    for name, base in bases.items():
        a, b = tensors[_key(name, "A")], tensors[_key(name, "B")]
        whole = _Split(alpha=config.alpha_of(name), rows=(Part(0, b.shape[0]),))
        try:
            layer = _layer(config, base, a, b, splits.get(name, whole))
        except ValueError:
            raise InputError(
                f"{path}: {PARTS_KEY} in the header does not fit the tensors of {name}; "
                "write the adapter again."
            ) from None
        if isinstance(layer, DoraLinear):
            layer.lora_magnitude.data.copy_(tensors[_magnitude_key(name)])
        layers[name] = layer
    install(model, layers)


def _key(name: str, matrix: str) -> str:
    return f"base_model.model.{name}.lora_{matrix}.weight"


def _magnitude_key(name: str) -> str:
    return f"base_model.model.{name}.lora_magnitude_vector"


def _shapes(
    config: PeftConfig, bases: Mapping[str, nn.Linear | Conv1D]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of an adapter by their keys."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, base in bases.items():
        rank, (width, height) = config.rank_of(name), features(base)
        shapes |= {_key(name, "A"): (rank, width), _key(name, "B"): (height, rank)}
        if config.use_dora:
            shapes[_magnitude_key(name)] = (height,)
    return shapes


@torch.no_grad()
def _plain_tensors(layers: Mapping[str, LoraLinear]) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in layers.items():
        # Cloned, because A may be a view of a larger tensor, all of which would be saved.
        tensors[_key(name, "A")] = layer.lora_A.detach().clone()
        tensors[_key(name, "B")] = plain_b(layer)
        if isinstance(layer, DoraLinear):
            tensors[_magnitude_key(name)] = layer.lora_magnitude.detach().clone()
    return tensors


def plain_b(layer: LoraLinear) -> Tensor:
    """Return B (out, k·rank) with each part's B in its own rows and columns, 0 elsewhere."""
    plain = layer.lora_B.new_zeros(layer.out_features, plain_rank(layer))
    for place, (_, _, b) in zip(_places(layer), layer.blocks(), strict=True):
        plain[place] = b
    return plain


def _places(layer: LoraLinear) -> list[tuple[slice, slice]]:
    """Return the rows and columns of each part's B in the plain B."""
    r = layer.rank
    return [(part.slice, slice(k * r, k * r + r)) for k, part in enumerate(layer.parts)]


def _header(layers: Mapping[str, LoraLinear]) -> dict[str, str]:
    splits = {
        name: _Split(alpha=layer.alpha, rows=layer.parts)
        for name, layer in layers.items()
        if layer.parts != (Part(0, layer.out_features),)
    }
    note = {PARTS_KEY: _SplitByName.dump_json(splits).decode()} if splits else {}
    return {"format": "pt", **note}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, _Split]]:
    """Return the tensors of an adapter file and the layers that its header splits into parts."""
    if not path.exists() and (path.parent / _PICKLED).exists():
        raise InputError(
            f"{path.parent} holds {_PICKLED}, a pickle, which can run code when it is read; "
            f"save the adapter again with a recent PEFT, which writes {TENSORS}."
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        return tensors, _SplitByName.validate_json(header.get(PARTS_KEY, "{}"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {_AGAIN}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({in_a_line(error)}); {_AGAIN}.") from None
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({in_a_line(error)}); {_AGAIN}."
        ) from None
    except ValidationError:
        raise InputError(
            f"{path}: {PARTS_KEY} in the header is broken; write the adapter again."
        ) from None


def _check_keys(
    path: Path, config: PeftConfig, tensors: Mapping[str, Tensor], expected: Set[str]
) -> None:
    missing, unexpected = expected - tensors.keys(), tensors.keys() - expected
    if missing:
        raise InputError(
            f"{path} lacks {counted(len(missing), 'tensor')} that its {ADAPTER_CONFIG} requires "
            f"for this model, such as {min(missing)}; {_remedy(config)}."
        )
    of_model = [key for key in unexpected if key.startswith("base_model.model.")]
    if whole := sorted(key for key in of_model if ".lora_" not in key):
        raise InputError(
            f"{path} holds whole weights beside its updates, such as {whole[0]}: its vocabulary "
            "was resized, or modules_to_save trained them; loraqa reads only LoRA and DoRA, so "
            "merge the adapter into its base with PEFT and give the merged model."
        )
    if unexpected:
        raise InputError(
            f"{path} holds {counted(len(unexpected), 'tensor')} beyond those of this model and "
            f"its {ADAPTER_CONFIG}, such as {min(unexpected)}; {_remedy(config)}."
        )


def _check_tensors(
    path: Path,
    config: PeftConfig,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    for key, shape in shapes.items():
        if tensors[key].shape != shape:
            raise InputError(
                f"{path}: {key} has shape {tuple(tensors[key].shape)}, but this model and the rank "
                f"in {ADAPTER_CONFIG} need {shape}; {_remedy(config)}."
            )
        if not tensors[key].isfinite().all():
            raise InputError(f"{path}: {key} holds a NaN or an infinity; train the adapter again.")


def _remedy(config: PeftConfig) -> str:
    made_for = config.base_model_name_or_path
    return "load the base model it was trained on" + (f", {made_for}" if made_for else "")


@torch.no_grad()
def _layer(
    config: PeftConfig, base: nn.Linear | Conv1D, a: Tensor, b: Tensor, split: _Split
) -> LoraLinear:
    """Return the layer whose plain form is A `a` and B `b`.

    Raises:
        ValueError: `split` does not fit `a` and `b`.
    """
    parts, height = split.rows, b.shape[0]
    if a.shape[0] % len(parts) or any(not 0 <= p.start < p.stop <= height for p in parts):
        raise ValueError
    kind: Callable[..., LoraLinear] = DoraLinear if config.use_dora else LoraLinear
    if config.alora_invocation_tokens:
        kind = partial(ActivatedLinear, invocation=config.alora_invocation_tokens)
    layer = kind(
        base,
        a.shape[0] // len(parts),
        split.alpha,
        dropout=config.lora_dropout,
        rank_stabilised=config.use_rslora,
        parts=parts,
    )
    layer.lora_A.copy_(a)
    layer.lora_B.copy_(torch.cat([b[place] for place in _places(layer)]))
    if not plain_b(layer).equal(b.to(layer.lora_B)):
        raise ValueError
    return layer
