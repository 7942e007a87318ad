"""The token ids with which every question begins: those from which an activated LoRA acts."""

from itertools import takewhile

from loraqa.errors import InputError, quote
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import ANY_TEXT
from loraqa.squad.passage import Passage, Question

# Questions whose starts a tokenizer may join with what stands before them, each in another way.
_STARTS = (
    "Who?",
    "why?",
    "1203?",
    '"Aune"?',
    "'s?",
    "(a)?",
    ".",
    "-1",
    "$5",
    "¿Qué?",
    "谁?",
    "😀?",
)


def invocation_of_questions(encoder: PromptEncoder) -> list[int]:
    """Return the ids with which every prompt of a question begins.

    Raises:
        InputError: there are none.
    """
    questions = tuple(Question(str(number), text) for number, text in enumerate(_STARTS))
    (tree,) = encoder.encode_prompts([Passage(ANY_TEXT, questions)], 1).trees
    together = zip(*(branch.prompt.tolist() for branch in tree.branches), strict=False)
    common = [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, together)]
    if not common:
        raise InputError(
            f"The template {quote(encoder.template.text)} has no text before {{question}} from "
            f"which an activated LoRA could act, because the tokenizer {encoder.tokenizer.name} "
            'encodes it differently with each question; write some there, such as " Question: ", '
            "or leave lora.activated out."
        )
    return common


def check_invocation(encoder: PromptEncoder, invocation: tuple[int, ...]) -> None:
    """Raise `InputError` unless prompts of questions begin with an adapter's invocation."""
    begins = invocation_of_questions(encoder)
    if tuple(begins[: len(invocation)]) != invocation:
        show = encoder.tokenizer.show
        raise InputError(
            f"The adapter acts from {quote(''.join(map(show, invocation)))} on, but the template "
            f"{quote(encoder.template.text)} begins questions with "
            f"{quote(''.join(map(show, begins)))}; give the template of its training."
        )
