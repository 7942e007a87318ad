"""Texts encoded by words have the same tokens as whole texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from loraqa.prompt.segments import EncodedText, SegmentTokenizer, all_offsets, encode_texts
from loraqa.speed.start.words import cuts_at_blanks, encode_by_words, wrap
from loraqa.squad import read_passages
from loraqa.train.data import Preparation

_BLANKS = st.sampled_from([" ", " ", " ", "  ", "\n", " \n", "\n ", "\t", "\u00a0", "\u3000", "\0"])
_WORDS = st.sampled_from(["the", "king's", "It", "won't", "1066", "25,000", "(AD)", "–", "Å"])
_MARKS = st.sampled_from(["a\u0301", "\u0308", "\u212b", "\u2001"])
_TEXTS = st.lists(_BLANKS | _WORDS | _MARKS | st.text(max_size=5), max_size=12).map("".join)


def _byte_level(*cutters: Any) -> Tokenizer:
    """Return a small tokenizer that merges tokens across everything the cutters do not split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(cutters))
    corpus = ["the king's men won't   wait\n\nin 1066 or 25,000,    the kings \n \n of the land\t "]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 3, trainer)
    return tokenizer


def _split_by(pattern: str) -> Tokenizer:
    return _byte_level(
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


def _composed(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


TOKENIZERS = {
    "gpt2": _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "qwen": _composed(_split_by(PRETOKENIZE_REGEX)),
    "llama": _split_by(PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|")),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300)
@given(texts=st.lists(_TEXTS, max_size=4))
def test_tokens_and_offsets_equal_those_of_whole_texts(name: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    assert cuts_at_blanks(tokenizer)
    encoded = encode_by_words(tokenizer, texts)
    whole = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [text.ids.tolist() for text in encoded] == [encoding.ids for encoding in whole]
    places = [list(map(tuple, all_offsets(text).tolist())) for text in encoded]
    assert places == [encoding.offsets for encoding in whole]


def test_squad_has_gpt2s_tokens(shared: Path) -> None:
    gpt2 = AutoTokenizer.from_pretrained(shared / "gpt2").backend_tokenizer
    assert cuts_at_blanks(gpt2)
    passages = read_passages(shared / "data/squad1-dev.json").passages
    texts = [passage.context for passage in passages]
    texts += [question.text for passage in passages for question in passage.questions]
    encoded = encode_by_words(gpt2, texts)
    whole = gpt2.encode_batch(texts, add_special_tokens=False)
    assert [text.ids.tolist() for text in encoded] == [encoding.ids for encoding in whole]


def test_a_preparation_encodes_by_words_if_its_tokenizer_cuts_at_blanks(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[list[str]] = []

    def watched(tokenizer: Tokenizer, texts: Sequence[str]) -> list[EncodedText]:
        encoded.append(list(texts))
        return encode_texts(tokenizer, texts)

    plain = SegmentTokenizer.from_transformers(tiny_tokenizer)
    monkeypatch.setattr("loraqa.speed.start.words.encode_by_words", watched)
    by_words = wrap(Preparation()).wrap_tokenizer(plain)
    assert by_words.fingerprint == plain.fingerprint
    by_words.encode(["the king"])
    plain.encode(["the river"])
    assert encoded == [["the king"]]
    monkeypatch.setattr("loraqa.speed.start.words.cuts_at_blanks", lambda _: False)
    wrap(Preparation()).wrap_tokenizer(plain).encode(["the king"])
    assert encoded == [["the king"]]


def test_unknown_tokenizers_are_not_encoded_by_words() -> None:
    metaspace = _byte_level(pre_tokenizers.Metaspace())
    lines = _split_by(r"[^\n]+|\n")
    prefixed = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    lowered = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    lowered.normalizer = normalizers.Lowercase()
    bare = Tokenizer(models.BPE())
    for tokenizer in (metaspace, lines, prefixed, lowered, bare):
        assert not cuts_at_blanks(tokenizer)
