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
from loraqa.prompt.encode import Encoded, PromptEncoder
from loraqa.prompt.encoded_file import load_encoded, save_encoded
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.speed.start import encoded
from loraqa.speed.start.encoded import _KEPT, encode_once, wrap
from loraqa.squad import Answer, Passage, QADataset, Question, segmentation
from loraqa.train.data import Preparation, encode_training

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


@pytest.fixture
def encoder(tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptEncoder:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "cache"))
    return PromptEncoder(SegmentTokenizer.from_transformers(tiny_tokenizer), Template(), 150, 20)


def changed(encoder: PromptEncoder, **options: Any) -> PromptEncoder:
    """Return an encoder with other options."""
    names = ("tokenizer", "template", "max_length", "stride")
    return PromptEncoder(**{name: getattr(encoder, name) for name in names} | options)


def same(left: Encoded, right: Encoded) -> bool:
    with np.printoptions(threshold=1_000_000):
        return left.counts == right.counts and repr(left.trees) == repr(right.trees)


def refuse(*_: object) -> Encoded:
    raise AssertionError("encoded again")


def test_the_second_call_reads_the_cache(encoder: PromptEncoder) -> None:
    expected = encoder.encode_training(DATA.passages)
    assert len(expected.trees) > len(DATA.passages)
    assert same(encode_once(encoder, DATA, encode_training), expected)
    assert same(encode_once(encoder, DATA, refuse), expected)


def test_a_preparation_encodes_as_before_and_keeps_the_result(encoder: PromptEncoder) -> None:
    expected = encoder.encode_training(DATA.passages)
    assert same(wrap(Preparation(encode=lambda *_: expected)).encode(encoder, DATA), expected)
    assert same(wrap(Preparation(encode=refuse)).encode(encoder, DATA), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"template": Template("{context} Q {question} A {answer}")},
        {"max_length": 149},
        {"stride": 19},
    ],
    ids=str,
)
def test_other_options_encode_again(encoder: PromptEncoder, options: dict[str, Any]) -> None:
    encode_once(encoder, DATA, encode_training)
    with pytest.raises(AssertionError, match="encoded again"):
        encode_once(changed(encoder, **options), DATA, refuse)


def test_another_tokenizer_encodes_again(encoder: PromptEncoder, tiny_tokenizer: Any) -> None:
    encode_once(encoder, DATA, encode_training)
    other = deepcopy(tiny_tokenizer)
    other.add_tokens(["<more>"], special_tokens=True)
    other.eos_token = "<more>"
    tokenizer = SegmentTokenizer.from_transformers(other)
    with pytest.raises(AssertionError, match="encoded again"):
        encode_once(changed(encoder, tokenizer=tokenizer), DATA, refuse)


@pytest.mark.parametrize("changed_part", ["code", "Unicode's tables"])
def test_another_segmentation_encodes_again(
    encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed_part: str
) -> None:
    monkeypatch.setattr(encoded, "_code_fingerprint", encoded._code_fingerprint.__wrapped__)
    encode_once(encoder, DATA, encode_training)
    encode_once(encoder, DATA, refuse)
    if changed_part == "code":
        other = tmp_path / "segmentation.py"
        other.write_bytes(Path(segmentation.__file__).read_bytes() + b"#\n")
        monkeypatch.setattr(segmentation, "__file__", str(other))
    else:
        monkeypatch.setattr("regex.__version__", "1")
    with pytest.raises(AssertionError, match="encoded again"):
        encode_once(encoder, DATA, refuse)


def test_other_data_are_encoded_again(encoder: PromptEncoder) -> None:
    encode_once(encoder, DATA, encode_training)
    with pytest.raises(AssertionError, match="encoded again"):
        encode_once(encoder, replace(DATA, passages=DATA.passages[:1]), refuse)


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_truncated_file_is_replaced(encoder: PromptEncoder, cut: int) -> None:
    expected = encode_once(encoder, DATA, encode_training)
    (path,) = cache_folder("encoded").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:cut])
    assert same(encode_once(encoder, DATA, encode_training), expected)
    assert same(encode_once(encoder, DATA, refuse), expected)


def test_every_changed_byte_is_detected(encoder: PromptEncoder) -> None:
    """Also in the ids of questions and in the counts, which are no tensors."""
    encode_once(encoder, DATA, encode_training)
    (path,) = cache_folder("encoded").glob("*.safetensors")
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(AssertionError, match="encoded again"):
            encode_once(encoder, DATA, refuse)
        assert not path.exists()


def test_a_written_file_has_the_encoded_data(encoder: PromptEncoder, tmp_path: Path) -> None:
    expected = encoder.encode_training(DATA.passages)
    save_encoded(expected, tmp_path / "file")
    assert same(load_encoded(tmp_path / "file"), expected)


def test_a_full_disk_fails_only_for_a_required_file(encoder: PromptEncoder, tmp_path: Path) -> None:
    expected = encoder.encode_training(DATA.passages)
    with full_disk(room=100):
        assert same(encode_once(encoder, DATA, encode_training), expected)
        with pytest.raises(OSError, match=r"file cannot be written \(.*too large"):
            save_encoded(expected, tmp_path / "file")
    assert list(cache_folder("encoded").iterdir()) == []


def test_the_least_recently_used_file_is_deleted_and_foreign_files_stay(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    foreign = tmp_path / "cache" / "model.safetensors"
    foreign.parent.mkdir()
    foreign.touch()
    for stride in range(_KEPT):
        encode_once(changed(encoder, stride=stride), DATA, encode_training)
    _, oldest, *_ = cache_folder("encoded").iterdir()
    for path in (foreign, oldest):
        os.utime(path, (0, 0))
    encode_once(changed(encoder, stride=_KEPT), DATA, encode_training)
    assert foreign.exists()
    assert not oldest.exists()
    assert len(list(cache_folder("encoded").iterdir())) == _KEPT


def test_encoding_works_without_a_cache_folder(
    encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "file" / "cache"))
    expected = encoder.encode_training(DATA.passages)
    assert same(encode_once(encoder, DATA, encode_training), expected)
