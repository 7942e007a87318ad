"""From text to token ids, segment by segment, with no way for text to become a control token."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from loraqa.errors import InputError
from loraqa.prompt.tree import TokenIds
from loraqa.prompt.words import EncodedText, cuts_at_blanks, encode_by_words, encode_whole

# What a tokenizer has to give back.
_PROMPTS = (
    ("Context: In 1066, a b.", " Question: Who? Answer:", " William"),
    ("(He) said - it's $3.50!", " Q: What's it cost? A:", " $3.50"),
)


@dataclass(frozen=True, slots=True)
class _WithSpace:
    """A segment that may start with a space, and was encoded without it."""

    segment: str
    encoded: EncodedText

    @property
    def ids(self) -> TokenIds:
        return self.encoded.ids

    def offset(self, token: int) -> tuple[int, int]:
        start, end = self.encoded.offset(token)
        space = self.segment.startswith(" ")
        return start + space, end + space


class SegmentTokenizer:
    """Encodes the segments of prompts, each apart from its neighbours.

    It is the tokenizer's own model without its list of added tokens, so `<|endoftext|>` in a text
    is encoded as the characters it is made of. Segments are joined as ids, so the boundary between
    prompt and answer is known and never searched for.

    Attributes:
        start: ids that the tokenizer puts before every text (bos, for Llama-like models).
        eos: the id that ends an answer.

    Raises:
        InputError: the tokenizer has no fast backend or no end-of-text token, or joining
            segment-wise encodings does not give the prompt's text back.
    """

    def __init__(self, tokenizer: Any) -> None:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"The tokenizer {name} has no fast version (tokenizer.json); convert it with "
                "transformers' convert_slow_tokenizer first."
            )
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"The tokenizer {name} has no eos_token, which ends every answer; "
                "set one in its tokenizer_config.json."
            )
        eos = tokenizer.eos_token_id
        self._set_up(
            name,
            eos,
            [i for i in tokenizer("")["input_ids"] if i != eos or i == _bos(tokenizer)],
            _without_added_tokens(tokenizer.backend_tokenizer),
            _control_ids(tokenizer),
            {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()},
        )
        self._check_stable()

    def _set_up(
        self,
        name: str,
        eos: int,
        start: list[int],
        plain: Tokenizer,
        control: frozenset[int],
        names: dict[int, str],
    ) -> None:
        self.name, self.eos, self.start = name, eos, start
        self._plain, self._control, self._names = plain, control, names
        self._encode = encode_by_words if cuts_at_blanks(plain) else encode_whole
        self._adds_space = self._decode(["a", " b"]) == "a  b"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values, for another process."""
        return {
            "name": self.name,
            "eos": self.eos,
            "start": self.start,
            "plain": self._plain.to_str(),
            "control": sorted(self._control),
            "names": list(self._names.items()),
        }

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "SegmentTokenizer":
        """The reverse of `to_json`."""
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(
            told["name"],
            told["eos"],
            told["start"],
            Tokenizer.from_str(told["plain"]),
            frozenset(told["control"]),
            dict(told["names"]),
        )
        return tokenizer

    def encode(self, segments: Sequence[str]) -> list[EncodedText]:
        """Encode segments.

        Raises:
            InputError: a text would become a control token.
        """
        if self._adds_space:
            encoded = self._encode_with_space(segments)
        else:
            encoded = self._encode(self._plain, segments)
        self._check_no_control(segments, encoded)
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, without control tokens and outer blanks."""
        kept = [int(i) for i in ids if int(i) not in self._control]
        text: str = self._plain.decode(kept, skip_special_tokens=False)
        return text.strip()

    def show(self, token: int) -> str:
        """A token's own text, control tokens by their names, for people to look at."""
        return self._names.get(token) or self._plain.decode([token], skip_special_tokens=False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides which ids a segment gets."""
        parts = [self._plain.to_str(), self.start, self.eos, self._adds_space]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def line_breaks(self) -> list[int]:
        """The tokens whose text holds a line break."""
        ids = sorted(self._plain.get_vocab().values())
        texts = self._plain.decode_batch([[i] for i in ids], skip_special_tokens=False)
        added = [i for i, name in self._names.items() if "\n" in name]
        return [i for i, text in zip(ids, texts, strict=True) if "\n" in text] + added

    def _encode_with_space(self, segments: Sequence[str]) -> list[EncodedText]:
        """Leave the space before a segment to the tokenizer, which itself puts one there."""
        texts = [segment.removeprefix(" ") for segment in segments]
        return list(map(_WithSpace, segments, self._encode(self._plain, texts)))

    def _check_no_control(self, segments: Sequence[str], encoded: Sequence[EncodedText]) -> None:
        lengths = [len(text.ids) for text in encoded]
        ids = np.concatenate([*(text.ids for text in encoded), np.empty(0, dtype=np.int32)])
        found = np.flatnonzero(np.isin(ids, list(self._control)))
        if len(found):
            segment = segments[int(np.searchsorted(np.cumsum(lengths), found[0], side="right"))]
            raise InputError(
                f"The tokenizer {self.name} turns text into a control token, in "
                f"{segment[:60]!r}; use another tokenizer or take the text out."
            )

    def _decode(self, segments: Sequence[str]) -> str:
        encodings = self._plain.encode_batch(list(segments), add_special_tokens=False)
        text: str = self._plain.decode([i for encoding in encodings for i in encoding.ids])
        return text

    def _check_stable(self) -> None:
        for segments in _PROMPTS:
            ids = [i for encoding in self.encode(segments) for i in encoding.ids]
            text = self._plain.decode(ids, skip_special_tokens=False)
            if text.split() != "".join(segments).split():
                raise InputError(
                    f"The tokenizer {self.name} does not encode a prompt stably in segments: "
                    f"{''.join(segments)!r} came back as {text!r}; use a byte-level or "
                    "sentencepiece tokenizer."
                )


def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer, which matches no added token and adds nothing around a text."""
    plain = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(backend, part) is not None:
            setattr(plain, part, getattr(backend, part))
    return plain


def _control_ids(tokenizer: Any) -> frozenset[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = tokenizer.unk_token_id
    return frozenset(added - ({unknown} - {tokenizer.eos_token_id}))


def _bos(tokenizer: Any) -> int | None:
    bos: int | None = tokenizer.bos_token_id
    return bos
