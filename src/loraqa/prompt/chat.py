"""The chat template of a tokenizer as a template of prompts."""

import re
from typing import Any

from loraqa.errors import InputError
from loraqa.prompt.segments import SegmentTokenizer

# What the user of the chat writes. The context is first, so that its questions share it.
_REQUEST = "Text: {context}\n\nAnswer this question with a few words of the text: {question}"
# Texts that no chat template changes, for the places of the fields.
_PLACES = {"context": "LORAQA-CONTEXT", "question": "LORAQA-QUESTION"}


def chat_template(tokenizer: Any) -> str:
    """Return the text of the `Template` that asks as a chat with the model does.

    The control tokens of the chat are named in braces. The token that the tokenizer puts before
    every text is left out.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has no chat template; leave the template out, "
            "or give a text with {context}, {question} and {answer}."
        )
    # Models that can think before they answer are told not to; other templates ignore this.
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": _REQUEST.format(**_PLACES)}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    chat = chat.removeprefix(_added_before(tokenizer))
    chat = _controls(tokenizer).sub(r"{\g<0>}", chat)
    for field, place in _PLACES.items():
        chat = chat.replace(place, f"{{{field}}}")
    return f"{chat}{{answer}}"


def _added_before(tokenizer: Any) -> str:
    start = SegmentTokenizer.from_transformers(tokenizer).start
    return "".join(tokenizer.convert_ids_to_tokens(start))


def _controls(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of the tokenizer's control tokens, the longer ones first."""
    added = tokenizer.added_tokens_decoder.values()
    names = sorted((token.content for token in added if token.special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or "(?!)")
