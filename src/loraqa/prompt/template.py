"""The template of the prompt: the text before and between context, question and answer."""

import hashlib
import re
from dataclasses import dataclass, field

from loraqa.errors import InputError, quote

DEFAULT_TEMPLATE = "Context: {context} Question: {question} Answer: {answer}"
TWICE = "Context: {context}\nContext: {context} Question: {question} Answer: {answer}"
NAMED = {"twice": TWICE}
"""Names that stand for a template."""
CHAT = "chat"
"""Stands for the chat template of the base model's tokenizer (see `chat_template`)."""
_FIELDS = ("context", "question", "answer")
_FIELDS_TWICE = ("context", *_FIELDS)
# A control token, which unlike a field has a sign in its name, such as {<|im_start|>} or {[INST]}.
_CONTROL = re.compile(r"\{([^{}\s]*[^{}\w\s][^{}\s]*)\}")
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


@dataclass(frozen=True)
class Template:
    """A prompt of three separately encoded segments: context, question, answer.

    The context comes first, so that all questions on it share its computation. The answer comes
    last, so that the model generates it. Blanks between two segments belong to the later segment,
    because most tokenizers encode a space at the end of a text differently from one inside. A line
    break before the answer belongs to the question, because a generated line break ends an answer.

    The context may be there twice: a causal model that reads it again knows all of it by then.

    A name in braces that is no field, such as `{<|im_start|>}`, is a control token.
    Only the template can name one: braces in contexts and questions are text. Text on the far side
    of a control token is the same for all contexts or questions, and is encoded once.

    Attributes:
        text: the template, or a name from `NAMED`, whose template then takes its place.
        between_contexts: text with control tokens; None where the context is there once.
        before_context, before_question: text with control tokens, up to the last of them.
        after_question: text with control tokens, from the first of them.

    Raises:
        InputError: a field is missing, repeated or out of order, or text follows the answer. Or
            only the first of two contexts follows a blank.
    """

    text: str = DEFAULT_TEMPLATE
    between_contexts: str | None = field(init=False, repr=False, compare=False)
    before_context: str = field(init=False, repr=False, compare=False)
    before_question: str = field(init=False, repr=False, compare=False)
    after_question: str = field(init=False, repr=False, compare=False)
    _literals: tuple[str, str, str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", NAMED.get(self.text, self.text))
        pieces = re.split(r"\{(\w+)\}", self.text)
        fields = tuple(pieces[1::2])
        if fields not in (_FIELDS, _FIELDS_TWICE) or pieces[-1]:
            raise InputError(
                f"The template {quote(self.text)} must contain {{context}} (once or twice), "
                "{question} and {answer}, in this order, and end with {answer}."
            )
        object.__setattr__(self, "between_contexts", pieces[2] if len(fields) == 4 else None)
        if fields == _FIELDS_TWICE:
            if pieces[0].endswith(" ") and not pieces[2].endswith(" "):
                raise InputError(
                    f"The template {quote(self.text)} needs a blank before the second {{context}}, "
                    "as before the first."
                )
            del pieces[2:4]
        if not pieces[4].strip():
            raise InputError(
                f"The template {quote(self.text)} needs some text between {{question}} and "
                "{answer} that tells the model to answer."
            )
        cue, blank = _split_before_blank(pieces[4])
        (before, lead), (between, ask) = map(_split_after_control, (pieces[0], pieces[2]))
        cue, after = _split_before_control(cue)
        object.__setattr__(self, "before_context", before)
        object.__setattr__(self, "before_question", between)
        object.__setattr__(self, "after_question", after)
        object.__setattr__(self, "_literals", (lead, ask, cue, blank))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def context_lead(self) -> str:
        """The text before the context, after any control token."""
        return self._literals[0]

    def context(self, context: str) -> str:
        """Return the first segment: `context_lead`, then the context without trailing blanks."""
        return (self.context_lead + context).rstrip()

    def question(self, question: str) -> str:
        """Return the second segment, which ends where the answer or a control token starts."""
        return self._literals[1] + question.strip() + self._literals[2]

    def answer(self, answer: str) -> str:
        """Return the last segment, on one line; empty for an empty answer, which is only eos."""
        line = answer.strip()
        if "\n" in line or "\r" in line:
            line = _LINE_BREAK.sub(" ", line)
        return self._literals[3] + line if line else ""


def _split_before_blank(cue: str) -> tuple[str, str]:
    """Split off the blanks at the end of `cue` that follow its last line break."""
    end = max(len(cue.rstrip()), cue.rfind("\n") + 1)
    return cue[:end], cue[end:]


def split_at_controls(literal: str) -> list[str]:
    """Return texts and names of control tokens by turns; the first and the last are texts."""
    return _CONTROL.split(literal)


def _split_after_control(literal: str) -> tuple[str, str]:
    end = max((found.end() for found in _CONTROL.finditer(literal)), default=0)
    return literal[:end], literal[end:]


def _split_before_control(literal: str) -> tuple[str, str]:
    found = _CONTROL.search(literal)
    start = found.start() if found else len(literal)
    return literal[:start], literal[start:]
