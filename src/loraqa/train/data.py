"""The training data of a run: read, checked and encoded. Importing this loads no PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from loraqa.adapter.base import weights_hash
from loraqa.model.folder import is_local
from loraqa.model.source import ModelSource, choose_max_length, load_tokenizer
from loraqa.prompt.encode import Encoded, EncodingCounts, PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.squad import QADataset, Seen, check_there, read_passages

if TYPE_CHECKING:
    from loraqa.train.settings import RunSettings


class TrainingData(Protocol):
    """Trees to learn from. They may still be in preparation; then the first use waits for them.

    Attributes:
        facts: source, fingerprint and counts of the questions, as plain JSON values.
        encoded: the trees, and what encoding did.
        tokenizer: the tokenizer that they were encoded with.
        seen: hashes of the texts, to find them in dev data.
        base_sha256: the hash of the base model's weights, if it is known already. Computing it
            takes as long as loading the weights, so it is prepared with the data.
    """

    @property
    def facts(self) -> dict[str, Any]: ...

    @property
    def encoded(self) -> Encoded: ...

    @property
    def tokenizer(self) -> SegmentTokenizer: ...

    @property
    def seen(self) -> Seen: ...

    @property
    def base_sha256(self) -> str | None: ...


@dataclass(frozen=True)
class EncodedTrainingData:
    """`TrainingData` in memory."""

    facts: dict[str, Any]
    encoded: Encoded
    tokenizer: SegmentTokenizer
    seen: Seen
    base_sha256: str | None


def same_tokenizer(tokenizer: SegmentTokenizer) -> SegmentTokenizer:
    """Return the tokenizer as it is."""
    return tokenizer


def encode_training(encoder: PromptEncoder, data: QADataset) -> Encoded:
    """Encode a data set to learn from."""
    return encoder.encode_training(data.passages)


@dataclass(frozen=True)
class Preparation:
    """How the training data of a run are prepared.

    The plain way is the default of every field. An acceleration of `loraqa.speed` returns a
    preparation with other fields.

    Attributes:
        wrap_tokenizer: returns a tokenizer that gives the same tokens.
        encode: encodes a data set.
    """

    wrap_tokenizer: Callable[[SegmentTokenizer], SegmentTokenizer] = same_tokenizer
    encode: Callable[[PromptEncoder, QADataset], Encoded] = encode_training

    def __call__(self, settings: "RunSettings") -> TrainingData:
        """Read and encode the training data.

        Raises:
            InputError: the data, the model's tokenizer or the prompt cannot be used.
        """
        questions = read_questions(settings)
        encoder = self.encoder(settings)
        encoded = self.encode(encoder, questions)
        facts = describe_encoded(questions, encoded.counts)
        return EncodedTrainingData(
            facts, encoded, encoder.tokenizer, Seen.in_data(questions), base_hash(settings)
        )

    def encoder(self, settings: "RunSettings") -> PromptEncoder:
        """Make the encoder of a run, with the tokenizer of its model."""
        tokenizer, config = load_tokenizer(settings.model.source, settings.model.revision)
        max_length = choose_max_length(settings.prompt.max_length, config)
        template = Template(settings.prompt.template)
        return PromptEncoder(
            self.wrap_tokenizer(tokenizer), template, max_length, settings.prompt.stride
        )


def base_hash(settings: "RunSettings") -> str | None:
    """Return the hash of the weights of a base model on this machine; random weights have none.

    A model of the hub may still be downloaded, or change until it is loaded.
    """
    source = settings.model.source
    if settings.model.random_weights or not is_local(Path(source).expanduser()):
        return None
    return weights_hash(source)


def read_questions(settings: "RunSettings") -> QADataset:
    """Read the questions that a run learns from.

    Raises `InputError` as `read_passages` and `QADataset.to_learn_from` do.
    """
    options = settings.data
    data = read_passages(options.train, on_bad=options.on_bad, split="train")
    return data.to_learn_from(options.on_bad)


def check_sources(settings: "RunSettings") -> None:
    """Raise `InputError` if the model or the data do not exist, before anything is read."""
    ModelSource(settings.model.source, settings.model.revision)
    for source in (settings.data.train, settings.data.dev):
        if source is not None:
            check_there(source)


def describe(data: QADataset) -> dict[str, Any]:
    """Source, fingerprint and counts of a data set, as plain JSON values."""
    told = {"source": data.source, "version": data.version, "sha256": data.fingerprint}
    return told | data.counts()


def describe_encoded(data: QADataset, counts: EncodingCounts) -> dict[str, Any]:
    """Like `describe`, of data to learn from, with what encoding did."""
    return describe(data) | {"encoding": counts.to_json()}
