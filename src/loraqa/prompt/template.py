"""The prompt as text: what stands before, between and after context, question and answer."""

import re
from dataclasses import dataclass, field

from loraqa.errors import InputError

DEFAULT_TEMPLATE = "Context: {context} Question: {question} Answer: {answer}"
_FIELDS = ("context", "question", "answer")
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


@dataclass(frozen=True)
class Template:
    """A prompt in three segments that are encoded apart: context, question, answer.

    The context comes first, so that all questions on it share its computation; the answer comes
    last, so that it is what the model goes on with. Blanks between two segments belong to the
    later one: no segment ends in a space, which most tokenizers would encode unlike a space
    inside a text. A line break before the answer belongs to the question, because a line break
    in what the model writes ends its answer.

    Raises:
        InputError: a field is missing, repeated or out of order, or text follows the answer.
    """

    text: str = DEFAULT_TEMPLATE
    _literals: tuple[str, str, str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pieces = re.split(r"\{(\w+)\}", self.text)
        if tuple(pieces[1::2]) != _FIELDS or pieces[-1]:
            raise InputError(
                f"The template {self.text!r} must hold {{context}}, {{question}} and {{answer}} "
                "once each, in this order, and end with {answer}."
            )
        if not pieces[4].strip():
            raise InputError(
                f"The template {self.text!r} needs some text between {{question}} and {{answer}}, "
                "which tells the model to answer."
            )
        cue, blank = _split_before_blank(pieces[4])
        object.__setattr__(self, "_literals", (pieces[0], pieces[2], cue, blank))

    @property
    def context_lead(self) -> str:
        """What stands before the context."""
        return self._literals[0]

    def context(self, context: str) -> str:
        """The first segment. The context keeps its offsets: it starts after `context_lead`."""
        return (self.context_lead + context).rstrip()

    def question(self, question: str) -> str:
        """The second segment, up to where the answer starts."""
        return self._literals[1] + question.strip() + self._literals[2]

    def answer(self, answer: str) -> str:
        """The last segment, on one line; empty for an empty answer, told by the end token alone."""
        line = _LINE_BREAK.sub(" ", answer.strip())
        return self._literals[3] + line if line else ""


def _split_before_blank(cue: str) -> tuple[str, str]:
    """Cut off the blanks at the end, up to the last line break."""
    end = max(len(cue.rstrip()), cue.rfind("\n") + 1)
    return cue[:end], cue[end:]
