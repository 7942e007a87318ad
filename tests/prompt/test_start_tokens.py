"""Prompts start with the tokens that the tokenizer itself puts before a text."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from loraqa.errors import InputError
from loraqa.prompt.segments import SegmentTokenizer, added_before
from loraqa.speed.start.tokenizer import read_tokenizer

_CORPUS = [
    "Context: In 1066 the Normans came. Question: Who came? Answer: the Normans",
    "(He) said - it's $3.50! Q: What's it cost? A: $3.50, a b c William",
] * 3
_FAMILIES = sorted({str(name) for name in TOKENIZER_MAPPING_NAMES.values() if name})


def _trained(family: str) -> Any:
    """Return a small tokenizer of a family; None if it is not fast or encodes no plain text."""
    try:
        untrained = getattr(transformers, family)()
        tokenizer = untrained.is_fast and untrained.train_new_from_iterator(_CORPUS, 300)
        return tokenizer and tokenizer("In 1066") and tokenizer
    # Some families need a vocabulary file, a package that is not installed, or words in boxes.
    except (ImportError, TypeError, ValueError):
        return None


def _wrapped(tokenizer: Any) -> SegmentTokenizer | None:
    """Return the wrapped tokenizer; None if it is refused, as those without eos are."""
    try:
        return SegmentTokenizer.from_transformers(tokenizer)
    except InputError:
        return None


_TRAINED = {family: tokenizer for family in _FAMILIES if (tokenizer := _trained(family))}
_USABLE = {family: wrapped for family in _TRAINED if (wrapped := _wrapped(_TRAINED[family]))}


def test_most_families_of_transformers_are_tried() -> None:
    assert len(_TRAINED) >= 40
    assert {"GPT2Tokenizer", "LlamaTokenizer", "GemmaTokenizer", "Qwen2Tokenizer"} <= set(_USABLE)


@pytest.mark.parametrize("family", _TRAINED)
def test_a_segment_follows_what_the_tokenizer_puts_before_a_text(family: str) -> None:
    tokenizer = _TRAINED[family]
    alone = tokenizer("In 1066", add_special_tokens=False)["input_ids"]
    whole = tokenizer("In 1066")["input_ids"]
    before = added_before(whole, alone)
    assert whole[: len(before) + len(alone)] == before + alone
    # Special tokens only, and as many as the tokenizer marks before the text.
    mask = tokenizer("In 1066", return_special_tokens_mask=True)["special_tokens_mask"]
    assert len(before) == mask.index(0)
    if family in _USABLE:
        assert _USABLE[family].start == before


_ADDED = {"none": "$A", "bos": "{bos} $A", "eos": "$A {eos}", "both": "{bos} $A {eos}"}


@pytest.mark.parametrize(("added", "bos"), [*product(_ADDED, ["<|endoftext|>", "<bos>"])])
def test_the_same_token_at_both_ends_is_told_by_its_place(
    tiny_tokenizer: Any, tmp_path: Path, added: str, bos: str
) -> None:
    tokenizer = _adding(tiny_tokenizer, _ADDED[added], bos=bos)
    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    expected = start if added in ("bos", "both") else []
    wrapped = SegmentTokenizer.from_transformers(tokenizer)
    assert wrapped.start == expected
    (context,) = wrapped.encode(["Context: the king"])
    assert tokenizer("Context: the king")["input_ids"] == [
        *wrapped.start,
        *context.ids,
        *(end if added in ("eos", "both") else []),
    ]
    tokenizer.save_pretrained(tmp_path)
    assert read_tokenizer(tmp_path).start == expected


@pytest.mark.parametrize("before", [[], [7], [7, 7], [3, 7]])
@pytest.mark.parametrize("after", [[], [7], [9]])
def test_what_is_before_a_text_is_found(before: list[int], after: list[int]) -> None:
    assert added_before([*before, 1, 2, *after], [1, 2]) == before


def test_a_tokenizer_that_encodes_a_text_differently_is_refused() -> None:
    with pytest.raises(InputError, match="special tokens"):
        added_before([7, 1, 3], [1, 2])


def _adding(tokenizer: Any, template: str, *, bos: str) -> PreTrainedTokenizerFast:
    """Return a copy of a byte-level tokenizer that adds tokens around a text."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token=bos, eos_token="<|endoftext|>"
    )
    names: Sequence[str] = [bos, "<|endoftext|>"]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=template.format(bos=bos, eos="<|endoftext|>"),
        special_tokens=[(name, made.convert_tokens_to_ids(name)) for name in dict.fromkeys(names)],
    )
    return made
