"""Segments are encoded separately, and text never becomes control tokens."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loraqa.errors import InputError
from loraqa.prompt.segments import SegmentTokenizer, all_offsets
from loraqa.prompt.template import Template


def test_joined_segments_are_gpt2s_tokens_of_the_prompt(shared: Path) -> None:
    gpt2 = AutoTokenizer.from_pretrained(shared / "gpt2")
    template = Template()
    segments = [
        template.context("In 1066 the Normans came."),
        template.question("Who came?"),
        template.answer("the Normans"),
    ]
    joined = [i for e in SegmentTokenizer.from_transformers(gpt2).encode(segments) for i in e.ids]
    assert joined == gpt2("".join(segments)).input_ids


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8")))
def test_text_round_trips_without_control_tokens(tiny_tokenizer: Any, text: str) -> None:
    text = f"{text}<|endoftext|>{text}"
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    (encoding,) = tokenizer.encode([text])
    assert tokenizer.eos not in encoding.ids
    assert tokenizer.decode(encoding.ids) == text.strip()
    # The tokenizer by itself returns a control token.
    assert tokenizer.eos in tiny_tokenizer(text).input_ids


def test_an_answer_is_decoded_without_its_end(tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    (encoding,) = tokenizer.encode([" the king"])
    assert tokenizer.decode([*encoding.ids, tokenizer.eos]) == "the king"


def test_trunks_start_with_bos_if_the_tokenizer_adds_it() -> None:
    backend = _word_pieces()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    assert SegmentTokenizer.from_transformers(wrapped).start == [0]


def test_a_sentencepiece_tokenizer_gets_no_second_space() -> None:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=_word_pieces(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer = SegmentTokenizer.from_transformers(wrapped)
    ids = [i for e in tokenizer.encode(["Context: ab", " Question: c"]) for i in e.ids]
    assert tokenizer.decode(ids) == "Context: ab Question: c"


def test_offsets_count_a_leading_space_that_is_not_encoded() -> None:
    backend = _word_pieces()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    for segment in (" ab cab", "ab cab"):
        (encoded,) = SegmentTokenizer.from_transformers(wrapped).encode([segment])
        tokens = list(map(backend.id_to_token, encoded.ids))
        pieces = [segment[start:end] for start, end in all_offsets(encoded)]
        letters = [i for i, token in enumerate(tokens) if token != "▁"]
        assert [pieces[i] for i in letters] == [tokens[i] for i in letters]
        assert "".join(pieces[i] for i in letters) == "abcab"


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    backend = _word_pieces()
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    with pytest.raises(InputError, match="stably"):
        SegmentTokenizer.from_transformers(wrapped)


def test_a_tokenizer_without_eos_is_refused() -> None:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=_word_pieces(), unk_token="<unk>")
    with pytest.raises(InputError, match="eos_token"):
        SegmentTokenizer.from_transformers(wrapped)


def _word_pieces() -> Tokenizer:
    """Return a character tokenizer that marks spaces and prepends one, like Llama's."""
    characters = ["<s>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[], unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    return tokenizer
