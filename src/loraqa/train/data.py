"""What a run learns from: read, checked and encoded. Imports nothing large by itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loraqa.model.source import ModelSource, choose_max_length, load_tokenizer
from loraqa.prompt.cache import encode_training_once
from loraqa.prompt.encode import Encoded, EncodingCounts, PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.squad import QADataset, check_there, read_passages

if TYPE_CHECKING:
    from loraqa.train.settings import RunSettings


@dataclass(frozen=True)
class TrainingData:
    """Trees to learn from.

    Attributes:
        facts: where the questions came from, their fingerprint and counts, as plain JSON values.
        encoded: the trees, and what encoding did.
        tokenizer: what they were encoded with.
    """

    facts: dict[str, Any]
    encoded: Encoded
    tokenizer: SegmentTokenizer

    @property
    def all_answerable(self) -> bool:
        """Whether every question has an answer (SQuAD v1.1)."""
        return not self.facts["unanswerable"]


def check_sources(settings: "RunSettings") -> None:
    """Raise `InputError` where the model or the data are not there, before anything is read."""
    ModelSource(settings.model.source, settings.model.revision)
    for source in (settings.data.train, settings.data.dev):
        if source is not None:
            check_there(source)


def read_training_data(settings: "RunSettings") -> TrainingData:
    """Read and encode the training data of a run.

    Raises:
        InputError: the data, the model's tokenizer or the prompt cannot be used.
    """
    questions = read_training_questions(settings.data.train, settings.data.on_bad)
    encoder = load_encoder(settings)
    encoded = encode_training_once(encoder, questions)
    facts = describe_encoded(questions, encoded.counts)
    return TrainingData(facts, encoded, encoder.tokenizer)


def read_training_questions(source: str, on_bad: Literal["stop", "skip"]) -> QADataset:
    """Read what a run is to learn from, or raise `InputError`; see `read_passages`."""
    return read_passages(source, on_bad=on_bad, split="train")


def load_encoder(settings: "RunSettings") -> PromptEncoder:
    """What makes a run's trees, with the tokenizer of its model, or raise `InputError`."""
    tokenizer, config = load_tokenizer(settings.model.source, settings.model.revision)
    return PromptEncoder(
        tokenizer,
        Template(settings.prompt.template),
        choose_max_length(settings.prompt.max_length, config),
        settings.prompt.stride,
    )


def describe(data: QADataset) -> dict[str, Any]:
    """Source, fingerprint and counts of a data set, as plain JSON values."""
    told = {"source": data.source, "version": data.version, "sha256": data.fingerprint}
    return told | data.counts()


def describe_encoded(data: QADataset, counts: EncodingCounts) -> dict[str, Any]:
    """Like `describe`, of data to learn from, with what encoding did."""
    return describe(data) | {"encoding": counts.to_json()}
