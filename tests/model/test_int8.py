"""Models are loaded with int8 weights, and quantised while they are read."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import loraqa.model.int8 as loading
from loraqa.errors import InputError
from loraqa.lora.int8 import Int8Layer, quantise_all
from loraqa.model.load import load_model

FAMILIES = ["gpt2", "llama"]


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Return a function that writes a tiny model in several files."""

    def make(family: str) -> Path:
        tiny_model(family).save_pretrained(tmp_path, max_shard_size="20KB")
        return tmp_path

    return make


def load(folder: Path, **options: Any) -> Any:
    return load_model(folder, device="cpu", quantisation="int8", **{"dtype": "float32", **options})


def in_full(model: Any) -> list[str]:
    """Return the names of linear layers that hold a weight in full; the head does not count."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and not isinstance(layer, Int8Layer)
        and not layer.weight.is_meta
        and layer is not model.get_output_embeddings()
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_files_give_what_the_loaded_model_gives(folder: Any, family: str, dtype: str) -> None:
    path = folder(family)
    loaded, expected = load(path, dtype=dtype), load_model(path, dtype=dtype, device="cpu")
    quantise_all(expected)
    ours, theirs = loaded.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert any(tensor.dtype == torch.int8 for tensor in ours.values())
    for name in ours:
        assert torch.equal(ours[name], theirs[name])
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids).logits, expected(ids).logits)
    assert not hasattr(loaded.config, "quantization_config")


@pytest.mark.parametrize("family", FAMILIES)
def test_at_most_one_weight_is_in_memory_in_full(
    folder: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_of = {}
    needed = loading._Int8Quantizer.param_needs_quantization
    monkeypatch.setattr(
        loading._Int8Quantizer,
        "param_needs_quantization",
        lambda self, model, name: model_of.update(it=model) or needed(self, model, name),
    )
    done = []

    def noting(name: str, *rest: Any) -> None:
        quantise(name, *rest)
        done.append(in_full(model_of["it"]))

    quantise = loading.quantise
    monkeypatch.setattr(loading, "quantise", noting)
    load(folder(family))
    assert done == 2 * (4 if family == "gpt2" else 7) * [[]]


def test_random_weights_are_quantised_too(folder: Any) -> None:
    model = load(folder("llama"), random_weights=True)
    assert not in_full(model)
    assert model(torch.arange(9)[None]).logits.isfinite().all()


def change(folder: Path, ending: str, how: Any) -> None:
    """Change the tensor whose name has this ending; None takes it out."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if name.endswith(ending)]:
            tensor = how(tensors.pop(name))
            if tensor is not None:
                tensors[name] = tensor
        save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda w: w[:, 1:].contiguous(), "1.mlp.up_proj.weight is 48 × 31, but config.json makes"),
        (lambda _: None, "lack 1 tensors that its config.json requires: model.layers.1.mlp.up_"),
        (lambda w: w / 0, "layers.1.mlp.up_proj holds a NaN or an infinity"),
    ],
)
def test_wrong_weights_are_named_as_for_other_models(folder: Any, how: Any, message: str) -> None:
    path = folder("llama")
    change(path, "layers.1.mlp.up_proj.weight", how)
    with pytest.raises(InputError, match=re.escape(message)):
        load(path)


def test_another_quantisation_is_refused(folder: Any) -> None:
    with pytest.raises(InputError, match="no quantisation 'int4'; give one of none, int8"):
        load_model(folder("gpt2"), quantisation="int4")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the files in memory")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_do_not_stay_in_memory(folder: Any, family: str) -> None:
    path = folder(family)
    model = load(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert model(torch.arange(9)[None]).logits.isfinite().all()
