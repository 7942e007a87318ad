"""The template of the prompt: the text before and between context, question and answer."""

import hashlib
import re
from dataclasses import dataclass, field

from loraqa.errors import InputError, quote

DEFAULT_TEMPLATE = "Context: {context} Question: {question} Answer: {answer}"
_FIELDS = ("context", "question", "answer")
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


@dataclass(frozen=True)
class Template:
    """A prompt of three separately encoded segments: context, question, answer.

    The context comes first, so that all questions on it share its computation. The answer comes
    last, so that the model generates it. Blanks between two segments belong to the later segment,
    because most tokenizers encode a space at the end of a text differently from one inside. A line
    break before the answer belongs to the question, because a generated line break ends an answer.

    Raises:
        InputError: a field is missing, repeated or out of order, or text follows the answer.
    """

    text: str = DEFAULT_TEMPLATE
    _literals: tuple[str, str, str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pieces = re.split(r"\{(\w+)\}", self.text)
        if tuple(pieces[1::2]) != _FIELDS or pieces[-1]:
            raise InputError(
                f"The template {quote(self.text)} must contain {{context}}, {{question}} and "
                "{answer} once each, in this order, and end with {answer}."
            )
        if not pieces[4].strip():
            raise InputError(
                f"The template {quote(self.text)} needs some text between {{question}} and "
                "{answer} that tells the model to answer."
            )
        cue, blank = _split_before_blank(pieces[4])
        object.__setattr__(self, "_literals", (pieces[0], pieces[2], cue, blank))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def context_lead(self) -> str:
        """The text before the context."""
        return self._literals[0]

    def context(self, context: str) -> str:
        """Return the first segment: `context_lead`, then the context without trailing blanks."""
        return (self.context_lead + context).rstrip()

    def question(self, question: str) -> str:
        """Return the second segment, which ends where the answer starts."""
        return self._literals[1] + question.strip() + self._literals[2]

    def answer(self, answer: str) -> str:
        """Return the last segment, on one line; empty for an empty answer, which is only eos."""
        line = _LINE_BREAK.sub(" ", answer.strip())
        return self._literals[3] + line if line else ""


def _split_before_blank(cue: str) -> tuple[str, str]:
    """Split off the blanks at the end of `cue` that follow its last line break."""
    end = max(len(cue.rstrip()), cue.rfind("\n") + 1)
    return cue[:end], cue[end:]
