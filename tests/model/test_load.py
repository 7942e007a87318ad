"""Base models load from folders without the network, and errors say what to do."""

import copy
import json
import logging
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_model

from loraqa.errors import InputError
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model.load import choose_device, choose_dtype, load_base
from loraqa.model.source import load_tokenizer


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_folder_is_loaded_as_transformers_loads_it(tiny_folder: Path) -> None:
    model, tokenizer = load_base(tiny_folder, dtype="float32", device="cpu")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    ids = torch.tensor([tokenizer("The old town lies on the river.").input_ids])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    assert not model.training


def test_the_same_weights_in_another_precision(tiny_folder: Path) -> None:
    model, _ = load_base(tiny_folder, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_random_weights_say_so_and_are_the_same_each_time(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "loraqa"):
        one, _ = load_base(tiny_folder, random_weights=True)
        state = torch.get_rng_state()
        other, _ = load_base(tiny_folder, random_weights=True)
    assert "RANDOM WEIGHTS" in caplog.text
    assert torch.equal(state, torch.get_rng_state())
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gpt2_has_its_known_size(shared: Path) -> None:
    model, _ = load_base(shared / "gpt2", random_weights=True)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(InputError, match=r"no folder \./no/such/folder; give"):
        load_base("./no/such/folder")


def header_length_of(size: int) -> bytes:
    return size.to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("config.json", None, "has no config.json; give"),
        ("config.json", b"{", "config.json is not valid JSON .*; copy it again"),
        ("config.json", b"", "config.json is not valid JSON .*; copy it again"),
        ("config.json", b"\xff\xfe{", "config.json is not valid JSON .*; copy it again"),
        ("config.json", b"[]", "config.json is not a JSON object; copy it again"),
        ("config.json", b"{}", "config.json names no model_type; copy it again"),
        ("config.json", b'{"model_type": "gpt7"}', "configuration .*gpt7"),
        ("model.safetensors", None, "holds no weights, model.safetensors; copy it again"),
        ("model.safetensors", b"", "model.safetensors is not a complete safetensors file"),
        ("model.safetensors", b"cut off", "model.safetensors is not a complete safetensors"),
        ("model.safetensors", header_length_of(10**15), "is not a complete .*; copy it again"),
        ("model.safetensors", header_length_of(2), "lack 29 tensors that its config.json requires"),
        ("tokenizer.json", None, "holds no tokenizer, such as tokenizer.json"),
        ("tokenizer.json", b"[]", "The tokenizer of the model in .* cannot be loaded"),
        ("tokenizer.json", b"{}", "The tokenizer of the model in .* cannot be loaded"),
        ("tokenizer.json", b'{"version": "1.0", "added_tokens": []}', "The tokenizer .* cannot be"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not valid JSON"),
        ("special_tokens_map.json", b"{", "special_tokens_map.json is not valid JSON"),
        ("added_tokens.json", b"{", "added_tokens.json is not valid JSON"),
    ],
)
def test_each_missing_or_damaged_file_is_named_with_the_remedy(
    tiny_folder: Path, tmp_path: Path, file: str, contents: bytes | None, message: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    if contents is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(contents)
    with pytest.raises(InputError, match=message) as told:
        load_base(folder)
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


def test_cut_weights_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(InputError, match=f"{folder}/model.safetensors is not a complete"):
        load_base(folder)


def test_weights_that_cannot_be_read_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(OSError, match=f"{folder}/model.safetensors cannot be read"):
        load_base(folder)


def test_a_vocabulary_without_merges_is_no_tokenizer(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(InputError, match=r"vocab.json, but no merges.txt"):
        load_base(folder)


def test_what_is_not_used_may_be_broken(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text("{")
    load_base(folder)


@pytest.fixture
def sharded(tiny_tokenizer: Any, tmp_path: Path) -> Path:
    tiny_model("gpt2").save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    tiny_tokenizer.save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


def test_an_index_that_names_absent_shards_is_told(sharded: Path) -> None:
    load_base(sharded)
    second = sorted(sharded.glob("model-*.safetensors"))[1]
    second.unlink()
    with pytest.raises(InputError, match=f"{sharded} lacks {second.name}, which"):
        load_base(sharded)


@pytest.mark.parametrize(
    "index", ["[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_a_broken_index_is_told(sharded: Path, index: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"model.safetensors.index.json"):
        load_base(sharded)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


LAYERS = {"gpt2": "n_layer", "llama": "num_hidden_layers"}


@pytest.fixture(params=["gpt2", "llama"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(kind: str, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """The folder of a base model."""
    tiny_model(kind).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_more_layers_than_weights_are_refused(kind: str, base: Path) -> None:
    edit_config(base, **{LAYERS[kind]: 3})
    with pytest.raises(
        InputError, match=r"lack \d+ tensors that its config.json requires: .*\.2\."
    ):
        load_base(base)


def test_more_weights_than_layers_are_refused(kind: str, base: Path) -> None:
    edit_config(base, **{LAYERS[kind]: 1})
    with pytest.raises(InputError, match=r"have more layers than its config.json says: .*\.1\."):
        load_base(base)


def test_a_resized_vocabulary_is_told(base: Path) -> None:
    edit_config(base, vocab_size=310)
    with pytest.raises(InputError, match=r"is 300 × 32, but config.json makes it 310 × 32.*vocab"):
        load_base(base)


def test_tensors_that_belong_to_no_layer_are_left_out_and_told(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as the value head of TRL."""
    plain, _ = load_base(base)
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"v_head.summary.weight": torch.ones(1, 32)}, base / "model.safetensors")
    assert not caplog.records
    model, _ = load_base(base)
    assert "left out: v_head.summary.weight." in caplog.text
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("role", ["eos_token", "model"])
def test_ids_beyond_the_embedding_are_refused_with_both_sizes(
    role: str, base: Path, tiny_tokenizer: Any
) -> None:
    if role == "model":
        edit_config(base, vocab_size=280)
    else:
        tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
        tiny_tokenizer.add_tokens([f"<|{i}|>" for i in range(9)])
        tiny_tokenizer.add_special_tokens({role: "<|new|>"})
        tiny_tokenizer.save_pretrained(base)
    with pytest.raises(
        InputError, match=r"has \d+ ids, but the model's embedding has only (300|280) rows"
    ):
        load_base(base, random_weights=True)


def test_a_padding_token_beyond_the_embedding_does_no_harm(
    base: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.add_tokens([f"<|{i}|>" for i in range(9)])
    tiny_tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tiny_tokenizer.save_pretrained(base)
    load_base(base)
    size = len(tiny_tokenizer)
    assert f"has {size} ids, but the model's embedding only 300 rows" in caplog.text


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(), "a t5 model is an encoder-decoder"),
        (transformers.BartConfig(), "a bart model is an encoder-decoder"),
        (transformers.BertConfig(), "a bert model is an encoder"),
        (transformers.RobertaConfig(), "a roberta model is an encoder"),
        (transformers.ModernBertConfig(), "a modernbert model has no head that predicts"),
        (transformers.ViTConfig(), "a vit model has no head that predicts"),
    ],
)
def test_what_is_not_causal_is_refused_by_what_it_is(
    config: Any, reason: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for load in (load_tokenizer, load_base, partial(load_base, random_weights=True)):
        with pytest.raises(InputError, match=reason):
            load(tmp_path)


@pytest.mark.parametrize("installed", [True, False], ids=["with PEFT", "without PEFT"])
def test_an_adapter_in_the_folder_of_a_base_is_no_part_of_it(
    installed: bool, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = load_base(base, dtype="float32", device="cpu")
    adapted, _ = load_base(base, dtype="float32", device="cpu")
    adapt(adapted, LoraSettings(rank=3))
    for layer in lora_layers(adapted).values():
        torch.nn.init.normal_(layer.lora_B)
    save_adapter(adapted, base)
    for where in ("models.auto.auto_factory", "integrations.peft", "utils.peft_utils"):
        monkeypatch.setattr(f"transformers.{where}.is_peft_available", lambda: installed)
    again, _ = load_base(base, dtype="float32", device="cpu")
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, plain(ids).logits)
        applied = transformers.AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        # What this test guards against.
        assert torch.equal(applied, plain(ids).logits) == (not installed)


def test_pickled_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_base(folder)


def test_remote_code_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(InputError):
        load_base(folder)


@pytest.mark.usefixtures("no_hub")
def test_a_hub_out_of_reach_leaves_what_was_downloaded(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--example--model" / "snapshots" / "c0ffee"
    shutil.copytree(tiny_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, _ = load_base("example/model", dtype="float32")
    assert model.config.hidden_size == 32


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_slow_dtype_is_warned_of_and_never_chosen(
    dtype: str, supported: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr("torch.cpu._is_amx_fp16_supported", lambda: supported)
    assert choose_dtype("auto", cpu) == (torch.bfloat16 if supported else torch.float32)
    assert not caplog.records
    assert choose_dtype(dtype, cpu) == getattr(torch, dtype)
    assert (f"instructions for {dtype}" in caplog.text) == (not supported)


def test_dtypes_and_devices() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(InputError, match="no dtype 'int8'"):
        choose_dtype("int8", cpu)
    for name in ("abacus", "meta"):
        with pytest.raises(InputError, match=f"The device '{name}' cannot be used"):
            choose_device(name)
    assert choose_device("cpu") == cpu
