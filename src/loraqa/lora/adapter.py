"""Adapter files: `adapter_config.json` and `adapter_model.safetensors`, as PEFT (0.21) has them.

A layer adapted in some rows only is written as the plain LoRA on all rows that equals it, which
PEFT loads; which rows they were stands in the header of the safetensors file, which PEFT ignores
(and drops when it saves, rightly: its training need not keep to the rows).
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraqa.errors import InputError
from loraqa.files import write_json, write_tensors
from loraqa.lora.adapt import install
from loraqa.lora.layer import LoraLinear, Rows, features, lora_layers
from loraqa.lora.peft_config import PeftConfig, describe, plain_rank
from loraqa.lora.settings import ADAPTER_CONFIG
from loraqa.lora.targets import check_unadapted, check_weights

TENSORS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_ROWS = "loraqa_rows"


class _OnRows(BaseModel):
    """What the plain form of a layer adapted in some rows only does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(gt=0, allow_inf_nan=False)
    rows: tuple[Rows, ...] = Field(min_length=1)


_OnRowsByName = TypeAdapter(dict[str, _OnRows])


def save_adapter(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    base_name: str | None = None,
    revision: str | None = None,
) -> None:
    """Write the adapter in `model` into `folder`, which need not exist, as PEFT would.

    `base_name` (hub name or folder) and `revision` tell PEFT's `AutoPeftModel` where the base is.
    """
    layers = lora_layers(model)
    if not layers:
        raise InputError("This model holds no adapter to save: call adapt or load_adapter first.")
    write_tensors(Path(folder) / TENSORS, _plain_tensors(layers), _header(layers))
    write_json(Path(folder) / ADAPTER_CONFIG, describe(model, layers, base_name, revision))


def load_adapter(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Freeze `model` and put the adapter of `folder`, written by loraqa or PEFT, into it.

    Raises `InputError`, and changes nothing, where the files are missing, broken, of more than
    plain LoRA or for another base model, where `model` is adapted already, and for what
    `check_weights` refuses.
    """
    check_unadapted(model)
    path = Path(folder) / TENSORS
    config = PeftConfig.read(Path(folder))
    tensors, on_rows = _read(path)
    bases = {name: model.get_submodule(name) for name in config.targets(model)}
    check_weights(model, bases)
    _check_keys(path, config, tensors, bases)
    _check_tensors(path, config, tensors, bases)
    layers = {}
    for name, base in bases.items():
        a, b = tensors[_key(name, "A")], tensors[_key(name, "B")]
        whole = _OnRows(alpha=config.alpha_of(name), rows=(Rows(0, b.shape[0]),))
        try:
            layers[name] = _layer(config, base, a, b, on_rows.get(name, whole))
        except ValueError:
            raise InputError(f"{path}: {_ROWS} in the header does not fit {name}.") from None
    install(model, layers)


def _key(name: str, matrix: str) -> str:
    return f"base_model.model.{name}.lora_{matrix}.weight"


@torch.no_grad()
def _plain_tensors(layers: Mapping[str, LoraLinear]) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in layers.items():
        # It may be a part of a larger tensor, of which not all is to be saved.
        tensors[_key(name, "A")] = layer.lora_A.detach().clone()
        tensors[_key(name, "B")] = _plain_b(layer)
    return tensors


def _plain_b(layer: LoraLinear) -> Tensor:
    """B (out, k·rank): each block's B in its own rows and columns, 0 elsewhere."""
    plain = layer.lora_B.new_zeros(layer.out_features, plain_rank(layer))
    for place, (_, _, b) in zip(_places(layer), layer.blocks(), strict=True):
        plain[place] = b
    return plain


def _places(layer: LoraLinear) -> list[tuple[slice, slice]]:
    """The rows and columns of the plain B that each block's B takes."""
    r = layer.rank
    return [(block.slice, slice(k * r, k * r + r)) for k, block in enumerate(layer.rows)]


def _header(layers: Mapping[str, LoraLinear]) -> dict[str, str]:
    on_rows = {
        name: _OnRows(alpha=layer.alpha, rows=layer.rows)
        for name, layer in layers.items()
        if layer.rows != (Rows(0, layer.out_features),)
    }
    note = {_ROWS: _OnRowsByName.dump_json(on_rows).decode()} if on_rows else {}
    return {"format": "pt", **note}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, _OnRows]]:
    """The tensors of an adapter file and what its header says about rows."""
    if not path.exists() and (path.parent / _PICKLED).exists():
        raise InputError(
            f"{path.parent} holds {_PICKLED}, a pickle, which can run code when it is read: "
            f"save the adapter again with a recent PEFT, which writes {TENSORS}."
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        return tensors, _OnRowsByName.validate_json(header.get(_ROWS, "{}"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}).") from None
    except ValidationError:
        raise InputError(f"{path}: {_ROWS} in the header is broken.") from None


def _check_keys(
    path: Path, config: PeftConfig, tensors: Mapping[str, Tensor], names: Iterable[str]
) -> None:
    expected = {_key(name, matrix) for name in names for matrix in "AB"}
    missing, unexpected = expected - tensors.keys(), tensors.keys() - expected
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} tensors that its {ADAPTER_CONFIG} asks for in this "
            f"model, such as {min(missing)}; {_remedy(config)}."
        )
    if unexpected:
        raise InputError(
            f"{path} holds {len(unexpected)} tensors for which its {ADAPTER_CONFIG} or this model "
            f"has no place, such as {min(unexpected)}; {_remedy(config)}."
        )


def _check_tensors(
    path: Path,
    config: PeftConfig,
    tensors: Mapping[str, Tensor],
    bases: Mapping[str, nn.Linear | Conv1D],
) -> None:
    for name, base in bases.items():
        rank, (width, height) = config.rank_of(name), features(base)
        for key, shape in ((_key(name, "A"), (rank, width)), (_key(name, "B"), (height, rank))):
            if tensors[key].shape != shape:
                raise InputError(
                    f"{path}: {key} has shape {tuple(tensors[key].shape)}, but rank {rank} and "
                    f"this model need {shape}; {_remedy(config)}."
                )
            if not tensors[key].isfinite().all():
                raise InputError(f"{path}: {key} holds a NaN or an infinity.")


def _remedy(config: PeftConfig) -> str:
    made_for = config.base_model_name_or_path
    return "load the base model that it was made for" + (f", {made_for}" if made_for else "")


@torch.no_grad()
def _layer(
    config: PeftConfig, base: nn.Linear | Conv1D, a: Tensor, b: Tensor, on_rows: _OnRows
) -> LoraLinear:
    """The layer whose plain form is A `a` and B `b`; `ValueError` where its rows cannot be so."""
    count, height = len(on_rows.rows), b.shape[0]
    if a.shape[0] % count or any(not 0 <= r.start < r.stop <= height for r in on_rows.rows):
        raise ValueError
    layer = LoraLinear(
        base,
        a.shape[0] // count,
        on_rows.alpha,
        dropout=config.lora_dropout,
        rank_stabilised=config.use_rslora,
        rows=on_rows.rows,
    )
    layer.lora_A.copy_(a)
    layer.lora_B.copy_(torch.cat([b[place] for place in _places(layer)]))
    if not _plain_b(layer).equal(b.to(layer.lora_B)):
        raise ValueError
    return layer
