"""The tokenizer that is read from a model's files is the one that transformers loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import tiny_config
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from loraqa.prompt.segments import SegmentTokenizer, all_offsets
from loraqa.speed.start.tokenizer import guess_encoder, read_tokenizer
from loraqa.train.data import Preparation
from loraqa.train.settings import RunSettings, load_settings

_CORPUS = ["Context: the old town of the river. Question: who? Answer: the king's men in 1203"] * 3
_SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

# Texts with control tokens, marks of spaces and bytes, and characters that are not in the corpus.
_PIECES = st.sampled_from([*_SPECIAL, "<0x0A>", "▁", " ", "  ", "\n", "the king's", "Åé", "🏭"])
_TEXTS = st.lists(_PIECES | st.text(max_size=5), max_size=8).map("".join)


def _trained(pre_tokenizer: Any, special: list[str]) -> dict[str, Any]:
    """Return vocabulary and merges of a small BPE tokenizer, as arguments for transformers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def _gpt2(folder: Path) -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    GPT2Tokenizer(**_trained(byte_level, ["<|endoftext|>"])).save_pretrained(folder)


def _gpt2_of_the_hub(folder: Path) -> None:
    """Its tokenizer_config.json names no special token."""
    _gpt2(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    tiny_config("gpt2").save_pretrained(folder)


def _qwen2(folder: Path) -> None:
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained = _trained(pre_tokenizers.Sequence([split, byte_level]), special)
    Qwen2Tokenizer(
        **trained, eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"]
    ).save_pretrained(folder)


def _llama(folder: Path, add_bos_token: bool) -> None:
    """A tokenizer with Metaspace and byte fallback, as sentencepiece makes them."""
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trained = _trained(metaspace, ["<unk>", "<s>", "</s>", *_BYTES])
    LlamaTokenizer(**trained, add_bos_token=add_bos_token).save_pretrained(folder)


def _llama_with_setting(folder: Path, add_bos_token: bool, setting: bool) -> None:
    """transformers 4 wrote this setting; transformers 5 ignores it beside a tokenizer.json."""
    _llama(folder, add_bos_token)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"add_bos_token": setting, "bos_token": {"__type": "AddedToken", "content": "<s>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _tokenizers_own(folder: Path) -> None:
    """A tokenizer of no class of transformers, with bos before every text and eos after it."""
    _gpt2(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ids)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SAVE: dict[str, Callable[[Path], None]] = {
    "gpt2": _gpt2,
    "gpt2 of the hub": _gpt2_of_the_hub,
    "qwen2": _qwen2,
    "llama with bos": lambda folder: _llama(folder, True),
    "llama without bos": lambda folder: _llama(folder, False),
    "llama with bos, set to true": lambda folder: _llama_with_setting(folder, True, True),
    "llama with bos, set to false": lambda folder: _llama_with_setting(folder, True, False),
    "llama without bos, set to true": lambda folder: _llama_with_setting(folder, False, True),
    "tokenizers' own": _tokenizers_own,
}
STARTS = {
    "llama with bos": ["<s>"],
    "llama with bos, set to true": ["<s>"],
    "llama with bos, set to false": ["<s>"],
    "tokenizers' own": ["<s>"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp("tokenizer") for name in SAVE}
    for name, folder in found.items():
        SAVE[name](folder)
    return found


def loaded(folder: Path) -> SegmentTokenizer:
    return SegmentTokenizer.from_transformers(AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[SegmentTokenizer, SegmentTokenizer]]:
    """The tokenizer that is read and the one that transformers loads, by name."""
    return {name: (read_tokenizer(folder), loaded(folder)) for name, folder in folders.items()}


Pairs = dict[str, tuple[SegmentTokenizer, SegmentTokenizer]]


@pytest.mark.parametrize("name", SAVE)
def test_the_tokenizer_is_the_one_of_transformers(name: str, pairs: Pairs) -> None:
    ours, theirs = pairs[name]
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.name, ours.start, ours.eos) == (theirs.name, theirs.start, theirs.eos)
    assert ours.line_breaks == theirs.line_breaks
    ids = range(ours.backend.get_vocab_size() + len(_SPECIAL))
    assert [ours.show(i) for i in ids] == [theirs.show(i) for i in ids]
    assert [ours.show(i) for i in ours.start] == STARTS.get(name, [])


@pytest.mark.parametrize("name", SAVE)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(_TEXTS, max_size=3))
def test_texts_have_the_same_tokens(name: str, pairs: Pairs, texts: list[str]) -> None:
    ours, theirs = pairs[name]
    for one, other in zip(ours.encode(texts), theirs.encode(texts), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert all_offsets(one).tolist() == all_offsets(other).tolist()
        assert ours.decode([*one.ids, ours.eos]) == theirs.decode([*other.ids, theirs.eos])


@pytest.mark.parametrize("name", SAVE)
def test_control_tokens_in_a_text_stay_text(
    name: str, folders: dict[str, Path], pairs: Pairs
) -> None:
    ours, _ = pairs[name]
    whole = AutoTokenizer.from_pretrained(folders[name])
    for token in whole.all_special_tokens:
        (encoded,) = ours.encode([f"the {token} king"])
        control = whole.convert_tokens_to_ids(token)
        assert control in whole(f"the {token} king")["input_ids"]
        assert control not in encoded.ids
        assert ours.decode(encoded.ids) == f"the {token} king"


def test_gpt2_is_the_one_of_transformers(shared: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(shared / "gpt2").save_pretrained(tmp_path)
    ours, theirs = read_tokenizer(tmp_path), loaded(tmp_path)
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.start, ours.eos, ours.line_breaks) == ([], 50256, theirs.line_breaks)


def run_settings(model: Path, *overrides: str) -> RunSettings:
    return load_settings(overrides=[f"model.source={model}", "data.train=train.json", *overrides])


@pytest.mark.parametrize("overrides", [(), ("prompt.max_length=80", "prompt.stride=7")])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_guessed_encoder_is_the_one_of_the_run(
    folders: dict[str, Path], kind: str, overrides: tuple[str, ...]
) -> None:
    folder = folders["gpt2" if kind == "gpt2" else "llama with bos"]
    tiny_config(kind).save_pretrained(folder)
    chosen = run_settings(folder, *overrides, "prompt.template={context} Q {question} A {answer}")
    guessed, preparation = guess_encoder(Preparation(), chosen), Preparation()
    assert guessed is not None
    assert guessed.fingerprint == preparation.encoder(chosen).fingerprint
    assert guessed.max_length == (80 if overrides else 256)


def test_the_encoder_of_a_downloaded_model_is_guessed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c0ffee" * 6 + "abcd"
    model = tmp_path / "models--example--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots").mkdir()
    (model / "snapshots" / commit).symlink_to(tiny_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    expected = guess_encoder(Preparation(), run_settings(tiny_folder))
    assert expected is not None
    for overrides in ((), ("model.revision=main",), (f"model.revision={commit}",)):
        chosen = run_settings(Path("example/model"), *overrides)
        guessed = guess_encoder(Preparation(), chosen)
        assert guessed is not None
        assert guessed.fingerprint == expected.fingerprint
    assert guess_encoder(Preparation(), run_settings(Path("example/another"))) is None


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff", b'{"model": 3}'])
def test_a_missing_or_damaged_file_gives_no_encoder(
    tiny_folder: Path, tmp_path: Path, file: str, content: bytes | None
) -> None:
    for path in tiny_folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    chosen = run_settings(tmp_path)
    assert guess_encoder(Preparation(), chosen) is not None
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    if file == "tokenizer_config.json" and content in (b"{}", b'{"model": 3}'):
        # The model's configuration names eos, too.
        assert guess_encoder(Preparation(), chosen) is not None
    else:
        assert guess_encoder(Preparation(), chosen) is None


def test_a_truncated_tokenizer_gives_no_encoder(tiny_folder: Path, tmp_path: Path) -> None:
    for path in tiny_folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "tokenizer.json").read_bytes()
    for length in range(0, len(whole) - 1, 97):
        (tmp_path / "tokenizer.json").write_bytes(whole[:length])
        assert guess_encoder(Preparation(), run_settings(tmp_path)) is None
