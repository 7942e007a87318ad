"""A GGUF file is a model like any other, and a bad one is refused in one sentence."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tests.conftest import full_disk, tiny_config, tiny_model
from tests.model.tiny_gguf import write_gguf

from loraqa.errors import InputError
from loraqa.files import cache_folder
from loraqa.model import gguf as module
from loraqa.model.gguf import converted
from loraqa.model.load import load_base
from loraqa.model.memory import LackOfMemoryError
from loraqa.model.source import load_tokenizer

Q8_0 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_FOUND", {})
    return cache_folder("gguf")


in_own_cache = pytest.mark.usefixtures("cache")


@pytest.fixture
def llama(tmp_path: Path, tiny_tokenizer: Any, cache: Path) -> Path:
    assert not cache.exists()
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), tiny_tokenizer)


def tiny_gpt2() -> Any:
    """transformers takes every GPT-2 in a GGUF file for one with 1,024 positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.GPT2Config(**{**tiny_config("gpt2").to_dict(), "n_positions": 1024})
        return transformers.GPT2LMHeadModel(config).eval()


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


@in_own_cache
@pytest.mark.parametrize(
    "written", [tiny_gpt2, partial(tiny_model, "llama"), partial(tiny_model, "qwen2")]
)
def test_model_and_tokenizer_are_those_that_were_written(
    written: Callable[[], Any], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", written(), tiny_tokenizer)
    model, tokenizer = load_base(path, dtype="float32", device="cpu")
    text = "Context: the old town. Question: Who <|endoftext|>?"
    ids = tiny_tokenizer(text)["input_ids"]
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.eos_token_id == tiny_tokenizer.eos_token_id
    inputs = torch.tensor([ids])
    torch.testing.assert_close(model(inputs).logits, written()(inputs).logits)
    assert model.name_or_path == tokenizer.name_or_path == str(path)


@in_own_cache
def test_a_sentencepiece_tokenizer_is_the_one_that_transformers_reads(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), None)
    segments, _ = load_tokenizer(path)
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in ("the old town", "Context: the\n1203 é <s>", "they"):
        (encoded,) = segments.encode([text])
        plain = text.replace("<s>", "")
        assert expected(plain)["input_ids"] == [*segments.start, *segments.encode([plain])[0].ids]
        assert segments.decode(encoded.ids) == text
    assert (segments.start, segments.eos) == ([1], 2)


@in_own_cache
def test_quantised_weights_are_unpacked(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write_gguf(
        tmp_path / "tiny.gguf", tiny_model("llama"), tiny_tokenizer, quantisation=Q8_0
    )
    model, _ = load_base(path, dtype="float32", device="cpu")
    name = "model.layers.1.mlp.gate_proj.weight"
    exact = tiny_model("llama").state_dict()[name].numpy()
    expected = gguf.dequantize(gguf.quantize(exact, Q8_0), Q8_0)
    assert (model.state_dict()[name].numpy() == expected).all()
    assert (exact != expected).any()


def test_a_file_is_converted_once(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted(llama)
    monkeypatch.setattr(module, "_FOUND", {})
    monkeypatch.setattr(module, "_convert", lambda *_: pytest.fail("converted again"))
    # The content is what counts, not the name.
    assert converted(shutil.copy(llama, tmp_path / "other.gguf")) == folder
    assert folders(cache) == [folder]


def test_a_conversion_parses_the_file_once(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []

    def reader(path: Path) -> Any:
        parsed.append(path)
        return whole(path)

    whole = gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", reader)
    converted(llama)
    assert len(parsed) == 1
    assert gguf.GGUFReader is reader


def test_a_kept_conversion_needs_neither_pytorch_nor_transformers(llama: Path) -> None:
    folder = converted(llama)
    code = (
        "import sys\nfrom pathlib import Path\nfrom loraqa.model.gguf import converted\n"
        f"print(converted(Path({str(llama)!r})))\n"
        "print([name for name in ('torch', 'transformers', 'gguf') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines() == [str(folder), "[]"]


@pytest.mark.parametrize("damage", ["changed", "deleted"])
def test_a_damaged_conversion_is_made_again(
    damage: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted(llama)
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    if damage == "deleted":
        shutil.rmtree(folder)
    else:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        monkeypatch.setattr(module, "_FOUND", {})
    assert converted(llama) == folder
    assert weights.read_bytes() == before


def test_the_conversions_used_last_stay(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_convert", lambda path, folder: shutil.copy(path, folder))
    monkeypatch.setattr(module, "_FOUND", {})
    paths = [tmp_path / f"{number}.gguf" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(b"GGUF" + bytes([number]))
    first = converted(paths[0])
    for number, path in enumerate(paths[1:]):
        os.utime(converted(path), (number, number))
        os.utime(first, (100, 100))
    assert first in folders(cache)
    assert len(folders(cache)) == 4


def test_a_changed_file_is_another_model(llama: Path, tiny_tokenizer: Any) -> None:
    before = converted(llama)
    write_gguf(llama, tiny_model("qwen2"), tiny_tokenizer)
    assert converted(llama) != before


def test_two_processes_convert_once(llama: Path, cache: Path) -> None:
    code = (
        "import logging, sys\nfrom pathlib import Path\nfrom loraqa.model.gguf import converted\n"
        "logging.basicConfig(level='INFO', stream=sys.stdout)\n"
        f"converted(Path({str(llama)!r}))\n"
    )
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    told = f"Converting {llama} to transformers' format; later runs find it in {cache}."
    assert sum(output.count(told) for output in outputs) == 1
    assert len(folders(cache)) == 1


def cut(kept: float, path: Path, _: Any) -> None:
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])


def cut_after_a_few_bytes(path: Path, _: Any) -> None:
    path.write_bytes(path.read_bytes()[:10])


def empty(path: Path, _: Any) -> None:
    path.write_bytes(b"")


def wrong_magic(path: Path, _: Any) -> None:
    path.write_bytes(b"PK" + path.read_bytes()[2:])


def noise(path: Path, _: Any) -> None:
    path.write_bytes(b"GGUF" + random.Random(0).randbytes(5000))


def other_architecture(path: Path, tokenizer: Any) -> None:
    write_gguf(path, tiny_model("llama"), tokenizer, architecture="clip")


def projector_without_tokenizer(path: Path, tokenizer: Any) -> None:
    write_gguf(path, tiny_model("llama"), tokenizer, architecture="clip", with_tokenizer=False)


def encoder_decoder(path: Path, tokenizer: Any) -> None:
    write_gguf(path, tiny_model("llama"), tokenizer, architecture="t5")


def no_tokenizer(path: Path, tokenizer: Any) -> None:
    write_gguf(path, tiny_model("llama"), tokenizer, with_tokenizer=False)


def no_weight(path: Path, tokenizer: Any) -> None:
    write_gguf(path, tiny_model("llama"), tokenizer, leave_out="up_proj")


def other_sizes(path: Path, tokenizer: Any) -> None:
    write_gguf(path, tiny_model("gpt2"), tokenizer)


def type_without_unpacking(path: Path, _: Any) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["a"])
    data = gguf.np.zeros((1, 292), dtype=gguf.np.uint8)
    writer.add_tensor("token_embd.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def one_part(path: Path, _: Any) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


CUT = (
    " is cut or damaged, or newer than the installed package gguf; compare its size, [0-9,]+ "
    "bytes, with that where it came from, and download it again"
)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (partial(cut, 0.01), CUT),
        (partial(cut, 0.1), CUT),
        (partial(cut, 0.5), CUT),
        (partial(cut, 0.99), CUT),
        (cut_after_a_few_bytes, CUT),
        (noise, CUT),
        (empty, "is not a GGUF file.*download it again"),
        (wrong_magic, "is not a GGUF file.*download it again"),
        (other_architecture, "architecture clip is not supported.*; take another model"),
        (projector_without_tokenizer, "architecture clip is not supported.*; take another model"),
        (encoder_decoder, "is not a causal language model: a t5 model .*; choose one"),
        (no_tokenizer, "holds no tokenizer; take another file"),
        (no_weight, "lacks 2 tensors that a llama .*: model.layers.0.mlp.up_proj.*; take another"),
        (
            other_sizes,
            "lacks 1 tensor .* or has them in another size: transformer.wpe.*; take",
        ),
        (type_without_unpacking, "type Q8_K, which cannot be unpacked; take another"),
        (one_part, "is one part of a model.*gguf-split --merge"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    spoil: Callable[[Path, Any], None],
    message: str,
    llama: Path,
    tiny_tokenizer: Any,
    cache: Path,
) -> None:
    spoil(llama, tiny_tokenizer)
    for load in (load_tokenizer, load_base):
        with pytest.raises(InputError, match=f"^[^\n]*{llama}[^\n]*{message}[^\n]*\\.$"):
            load(llama)
    assert not cache.exists() or folders(cache) == []


def test_a_package_that_is_missing_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "gguf" else True)
    with pytest.raises(InputError, match=r"needs the package gguf; .*pip install -e '\.\[gguf\]'"):
        load_base(llama)


def test_without_a_cache_the_sentence_says_so(llama: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    with pytest.raises(InputError, match=f"nothing can be written to {cache} .*LORAQA_CACHE"):
        load_base(llama)


@pytest.mark.parametrize("room", [100, 3000])
def test_on_a_full_disk_the_sentence_says_so(room: int, llama: Path, cache: Path) -> None:
    """The tokenizer does not fit, or the weights do not."""
    with full_disk(room), pytest.raises(InputError, match="has to be converted, and nothing can"):
        converted(llama)
    assert folders(cache) == []


def test_a_conversion_that_does_not_fit_into_memory_says_so(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to get 9 bytes")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(LackOfMemoryError, match=f"^Out of memory while {llama} was converted"):
        converted(llama)


def test_a_cache_of_somebody_else_can_be_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted(llama)
    monkeypatch.setattr(module, "_FOUND", {})

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert converted(llama) == folder


def test_files_beside_it_do_not_count(llama: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json", "tokenizer.json"):
        (llama.parent / name).write_text("broken")
    load_base(llama)
