"""From text to token ids, segment by segment; text never becomes a control token."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from loraqa.errors import InputError
from loraqa.prompt.template import CHAT
from loraqa.prompt.tree import TokenIds

# A text that shows what a tokenizer adds to every text.
ANY_TEXT = "Context"
# A tokenizer must give these prompts back.
_PROMPTS = (
    ("Context: In 1066, a b.", " Question: Who? Answer:", " William"),
    ("(He) said - it's $3.50!", " Q: What's it cost? A:", " $3.50"),
)


class EncodedText(Protocol):
    """The tokens of a text."""

    @property
    def ids(self) -> TokenIds:
        """Their ids, (tokens,)."""

    def offset(self, token: int) -> tuple[int, int]:
        """Return where the token of an index stands in the text: characters, start and end."""


def all_offsets(text: EncodedText) -> NDArray[np.int32]:
    """Return start and end of each token in a text, (tokens, 2)."""
    places = chain.from_iterable(map(text.offset, range(len(text.ids))))
    return np.fromiter(places, dtype=np.int32).reshape(-1, 2)


EncodeTexts = Callable[[Tokenizer, Sequence[str]], list[EncodedText]]
"""Encodes texts, with no tokens added around them."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A text and its encoding."""

    ids: TokenIds
    encoding: Encoding

    def offset(self, token: int) -> tuple[int, int]:
        return self.encoding.token_to_chars(token)  # type: ignore[return-value]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[EncodedText]:
    """Encode each text on its own."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [_Encoded(np.array(encoding.ids, dtype=np.int32), encoding) for encoding in encodings]


@dataclass(frozen=True, slots=True)
class _WithSpace:
    """A segment that may start with a space, and was encoded without the space."""

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
    """Encodes the segments of prompts, each on its own.

    It is the base model's tokenizer without its list of added tokens, so `<|endoftext|>` in a text
    is encoded as the characters that it consists of. Segments are joined as ids, so the boundary
    between prompt and answer is known and never searched for.

    Args:
        name: the tokenizer's name, for messages.
        backend: the tokenizer.
        eos: see below.
        start: see below.
        control: ids of control tokens. No text may become one, and no answer shows one.
        names: ids and names of all added tokens.

    Attributes:
        start: ids that the tokenizer puts before every text (bos, for Llama-like models).
        eos: the id that ends an answer.

    Raises:
        InputError: the ids of a prompt's segments, joined, do not give the prompt's text back.
    """

    def __init__(
        self,
        name: str,
        backend: Tokenizer,
        *,
        eos: int,
        start: Sequence[int],
        control: Collection[int],
        names: Mapping[int, str],
    ) -> None:
        self.name, self.eos, self.start = name, eos, list(start)
        self._control, self._names = frozenset(control), names
        self._encode_texts: EncodeTexts = encode_texts
        self._plain = _without_added_tokens(backend)
        self._adds_space = self._decode(["a", " b"]) == "a  b"
        self._check_stable()

    @classmethod
    def from_transformers(cls, tokenizer: Any) -> "SegmentTokenizer":
        """Wrap a tokenizer of transformers.

        Raises:
            InputError: as above, or the tokenizer has no fast version or no end-of-text token.
        """
        name = tokenizer.name_or_path or type(tokenizer).__name__
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"The tokenizer {name} has no fast version (tokenizer.json); convert it with "
                "transformers' convert_slow_tokenizer first."
            )
        eos, unknown = tokenizer.eos_token_id, tokenizer.unk_token_id
        if eos is None:
            raise InputError(
                f"The tokenizer {name} has no eos_token, which ends every answer; "
                "set one in its tokenizer_config.json."
            )
        added = tokenizer.added_tokens_decoder
        special = {i for i, token in added.items() if token.special}
        return cls(
            name,
            tokenizer.backend_tokenizer,
            eos=eos,
            start=added_before(
                tokenizer(ANY_TEXT)["input_ids"],
                tokenizer(ANY_TEXT, add_special_tokens=False)["input_ids"],
            ),
            control=special - ({unknown} - {eos}),
            names={i: str(token) for i, token in added.items()},
        )

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer without added tokens."""
        return self._plain

    @property
    def prompt_ids(self) -> int:
        """The number of ids from 0 to the largest that a prompt or an answer may hold."""
        return 1 + max(*self._plain.get_vocab().values(), *self.start, self.eos)

    @property
    def all_ids(self) -> int:
        """The number of ids from 0 to the largest of the tokenizer, with all added tokens."""
        return max(self.prompt_ids, *(1 + i for i in self._names))

    def encoding_by(self, encode: EncodeTexts) -> "SegmentTokenizer":
        """Return a tokenizer that encodes texts by another function, with the same tokens."""
        other = copy(self)
        other._encode_texts = encode
        return other

    def encode(self, segments: Sequence[str]) -> list[EncodedText]:
        """Encode segments.

        Raises:
            InputError: a text would become a control token.
        """
        if self._adds_space:
            encoded = self._encode_with_space(segments)
        else:
            encoded = self._encode_texts(self._plain, segments)
        self._check_no_control(segments, encoded)
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids, without control tokens and outer blanks."""
        kept = [int(i) for i in ids if int(i) not in self._control]
        text: str = self._plain.decode(kept, skip_special_tokens=False)
        return text.strip()

    def control(self, name: str) -> int:
        """Return the id of an added token. Raises `InputError` if there is none of this name."""
        for token, known in self._names.items():
            if known == name:
                return token
        raise InputError(
            f"The template names {{{name}}}, but the tokenizer {self.name} has no such token; take "
            f"it out, or give the template of this model ({CHAT})."
        )

    def show(self, token: int) -> str:
        """Return a token's text, or a control token's name, for people to look at."""
        return self._names.get(token) or self._plain.decode([token], skip_special_tokens=False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides which ids a segment gets."""
        parts = [self._plain.to_str(), self.start, self.eos, sorted(self._control)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def line_breaks(self) -> list[int]:
        """Ids of the tokens whose text holds a line break."""
        return [i for i, text in self._texts.items() if "\n" in text]

    @cached_property
    def blanks(self) -> list[int]:
        """Ids of the tokens whose text is white space alone."""
        return [i for i, text in self._texts.items() if not text.strip()]

    @cached_property
    def _texts(self) -> dict[int, str]:
        """The text of each token, and the name of each added one, by id."""
        ids = sorted(self._plain.get_vocab().values())
        texts = self._plain.decode_batch([[i] for i in ids], skip_special_tokens=False)
        return dict(zip(ids, texts, strict=True)) | dict(self._names)

    def _encode_with_space(self, segments: Sequence[str]) -> list[EncodedText]:
        """Remove the space before a segment, because the tokenizer puts one there itself."""
        texts = [segment.removeprefix(" ") for segment in segments]
        return list(map(_WithSpace, segments, self._encode_texts(self._plain, texts)))

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


def added_before(ids: Sequence[int], text: Sequence[int]) -> list[int]:
    """Return the ids that a tokenizer adds before a text.

    They are told from the ids after it by their place, because bos and eos may be the same id.

    Args:
        ids: the text's ids, with everything that the tokenizer adds.
        text: the text's ids alone.

    Raises:
        InputError: `ids` does not hold `text`.
    """
    for start in range(len(ids) - len(text) + 1):
        if ids[start : start + len(text)] == text:
            return list(ids[:start])
    raise InputError(
        "The tokenizer encodes a text differently when it adds its special tokens; use another one."
    )


def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    """Copy a tokenizer, but match no added tokens and add nothing around a text."""
    plain = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(backend, part) is not None:
            setattr(plain, part, getattr(backend, part))
    return plain
