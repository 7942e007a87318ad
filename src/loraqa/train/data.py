"""The training data of a run: read, checked and encoded. Importing this loads no PyTorch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from loraqa.adapter.base import weights_hash
from loraqa.errors import counted
from loraqa.model.folder import is_local
from loraqa.model.source import ModelSource, choose_max_length, load_tokenizer
from loraqa.prompt.encode import Encoded, EncodingCounts, PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.squad import QADataset, Seen, check_there, read_passages
from loraqa.squad.held_out import hold_out
from loraqa.squad.negatives import with_negatives

if TYPE_CHECKING:
    from loraqa.train.settings import RunSettings


class TrainingData(Protocol):
    """Trees to learn from. They may still be in preparation; then the first use waits for them.

    Attributes:
        facts: source, fingerprint and counts of the questions, as plain JSON values.
        encoded: the trees, and what encoding did.
        held_out: questions that are not learned from, to calibrate by.
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
    def held_out(self) -> QADataset: ...

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
    held_out: QADataset
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
        encoded = self.encode(encoder, questions.learned)
        return EncodedTrainingData(
            questions.describe(encoded.counts),
            encoded,
            questions.held_out,
            encoder.tokenizer,
            Seen.in_data(questions.all),
            base_hash(settings),
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


@dataclass(frozen=True)
class Questions:
    """The questions of a run.

    Attributes:
        all: those of the training data.
        learned: those that are learned from, and negatives, which are made of them.
        held_out: the others, to calibrate by.
    """

    all: QADataset
    learned: QADataset
    held_out: QADataset

    def describe(self, counts: EncodingCounts) -> dict[str, Any]:
        """Like `describe`, with what was held out and added, and what encoding did."""
        held_out = len(self.held_out.order)
        negatives = len(self.learned.order) + held_out - len(self.all.order)
        told = {"held_out": held_out, "negatives": negatives, "encoding": counts.to_json()}
        return describe(self.all) | told


def read_questions(settings: "RunSettings") -> Questions:
    """Read the questions of a run, hold some out, and add negatives to the others.

    Raises `InputError` as `read_passages` and `QADataset.to_learn_from` do.
    """
    options = settings.data
    data = read_passages(options.train, on_bad=options.on_bad, split="train")
    data = data.to_learn_from(options.on_bad)
    learned, held_out = hold_out(data, options.held_out, settings.seed)
    return Questions(data, with_negatives(learned, options.negatives, settings.seed), held_out)


def check_sources(settings: "RunSettings") -> None:
    """Raise `InputError` if the model or the data do not exist, before anything is read."""
    ModelSource(settings.model.source, settings.model.revision)
    for source in (settings.data.train, settings.data.dev):
        if source is not None:
            check_there(source)


def describe(data: QADataset) -> dict[str, Any]:
    """Source, fingerprint and counts of a data set, as plain JSON values.

    If some questions have no answer, `unanswerable_at` says where the first of them is.
    """
    told = {"source": data.source, "version": data.version, "sha256": data.fingerprint}
    at = {} if data.unanswerable_at is None else {"unanswerable_at": str(data.unanswerable_at)}
    return told | data.counts() | at


def without_answer(facts: Mapping[str, Any]) -> str:
    """Say how many questions of a data set that `describe` described have no answer.

    It is empty if all have one.
    """
    without, at = facts.get("unanswerable", 0), facts.get("unanswerable_at")
    if not without:
        return ""
    have = "has" if without == 1 else "have"
    first = f" (the first: {at})" if at else ""
    asked = counted(facts["questions"], "question")
    return f"{without:,} of {asked} of {facts['source']} {have} no answer{first}"
