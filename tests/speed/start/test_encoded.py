"""The cache returns what encoding returns, and only for the same input."""

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import full_disk

from loraqa.files import cache_folder
from loraqa.prompt.encode import Encoded, PromptEncoder, training_texts
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.speed.start.encoded import _KEPT, encode_training_once, load_encoded, write_encoded
from loraqa.squad import Answer, Passage, QADataset, Question

CONTEXT = " ".join(f"word{n}" for n in range(60))
DATA = QADataset(
    source="here",
    version="2.0",
    passages=(
        Passage(
            CONTEXT,
            (
                Question("a", "Which?", (Answer("word3", CONTEXT.index("word3")),)),
                Question("é", "None?"),
            ),
        ),
        Passage("A mill.", (Question("c", "What?", (Answer("mill", 2),)),)),
    ),
    order=("a", "é", "c"),
    repaired=0,
    skipped={},
)
TEXTS = training_texts(Template(), DATA.passages)


@pytest.fixture
def encoder(tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptEncoder:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "cache"))
    return PromptEncoder(SegmentTokenizer.from_transformers(tiny_tokenizer), Template(), 150, 20)


def same(left: Encoded, right: Encoded) -> bool:
    return left.counts == right.counts and repr(left.trees) == repr(right.trees)


@pytest.fixture(autouse=True)
def whole_arrays() -> Any:
    with np.printoptions(threshold=1_000_000):
        yield


def refuse(*_: object) -> Encoded:
    raise AssertionError("encoded again")


def test_the_second_call_reads_the_cache(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encoder.encode_training(DATA.passages)
    assert len(expected.trees) > len(DATA.passages)
    assert same(encode_training_once(encoder, DATA), expected)
    monkeypatch.setattr(PromptEncoder, "encode_training", refuse)
    assert same(encode_training_once(encoder, DATA), expected)


@pytest.mark.parametrize("changed", ["data", "template", "max_length", "stride", "tokenizer"])
def test_a_changed_input_is_encoded_again(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any, changed: str
) -> None:
    encode_training_once(encoder, DATA)
    data = DATA
    if changed == "data":
        data = replace(DATA, passages=DATA.passages[:1])
    elif changed == "tokenizer":
        other_tokenizer = deepcopy(tiny_tokenizer)
        other_tokenizer.add_tokens(["<more>"], special_tokens=True)
        other_tokenizer.eos_token = "<more>"
        encoder.tokenizer = SegmentTokenizer.from_transformers(other_tokenizer)
    else:
        other = {"template": Template("{context} Q {question} A {answer}")}
        setattr(encoder, changed, other.get(changed, 149 if changed == "max_length" else 19))
    monkeypatch.setattr(PromptEncoder, "encode_training", refuse)
    with pytest.raises(AssertionError, match="encoded again"):
        encode_training_once(encoder, data)


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_truncated_file_is_replaced(encoder: PromptEncoder, cut: int) -> None:
    expected = encode_training_once(encoder, DATA)
    (path,) = cache_folder("encoded").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:cut])
    assert same(encode_training_once(encoder, DATA), expected)


def test_a_changed_byte_is_detected(encoder: PromptEncoder) -> None:
    expected = encode_training_once(encoder, DATA)
    (path,) = cache_folder("encoded").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert same(encode_training_once(encoder, DATA), expected)


def test_a_written_file_has_the_encoded_data(encoder: PromptEncoder, tmp_path: Path) -> None:
    expected = encoder.encode_training(DATA.passages)
    for name in ("anew", "copied"):
        counts = write_encoded(tmp_path / name, encoder, DATA, TEXTS)
        assert counts == expected.counts
        assert same(load_encoded(tmp_path / name), expected)
    assert (tmp_path / "anew").read_bytes() == (tmp_path / "copied").read_bytes()


def test_a_damaged_file_that_cannot_be_replaced_is_not_copied(
    encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode_training_once(encoder, DATA)
    (path,) = cache_folder("encoded").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))

    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("loraqa.speed.start.encoded.replacing", read_only)
    write_encoded(tmp_path / "file", encoder, DATA, TEXTS)
    assert same(load_encoded(tmp_path / "file"), expected)


def test_a_full_disk_fails_only_for_a_required_file(encoder: PromptEncoder, tmp_path: Path) -> None:
    expected = encoder.encode_training(DATA.passages)
    with full_disk(room=100):
        assert same(encode_training_once(encoder, DATA), expected)
        with pytest.raises(OSError, match=r"file cannot be written \(.*too large"):
            write_encoded(tmp_path / "file", encoder, DATA, TEXTS)
    assert list(cache_folder("encoded").iterdir()) == []


def test_the_least_recently_used_file_is_deleted_and_foreign_files_stay(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    foreign = tmp_path / "cache" / "model.safetensors"
    foreign.parent.mkdir()
    foreign.touch()
    for encoder.stride in range(_KEPT):
        encode_training_once(encoder, DATA)
    _, oldest, *_ = cache_folder("encoded").iterdir()
    for path in (foreign, oldest):
        os.utime(path, (0, 0))
    encoder.stride = _KEPT
    encode_training_once(encoder, DATA)
    assert foreign.exists()
    assert not oldest.exists()
    assert len(list(cache_folder("encoded").iterdir())) == _KEPT


def test_encoding_works_without_a_cache_folder(
    encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "file" / "cache"))
    assert same(encode_training_once(encoder, DATA), encoder.encode_training(DATA.passages))
