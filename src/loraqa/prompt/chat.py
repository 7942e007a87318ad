"""The chat template of a tokenizer as a template of prompts."""

import re
from typing import Any

from loraqa.errors import InputError, in_a_line
from loraqa.prompt.segments import SegmentTokenizer

# What the user of the chat writes. The context is first, so that its questions share it.
_REQUEST = "Text: {context}\n\nAnswer this question with a few words of the text: {question}"
# Texts that no chat template changes, for the places of the fields.
_PLACES = {"context": "LORAQA-CONTEXT", "question": "LORAQA-QUESTION"}
_BLANKS = r"\s*"
_INSTEAD = "leave the template out, or give a text with {context}, {question} and {answer}"


def chat_template(tokenizer: Any) -> str:
    """Return the text of the `Template` that asks as a chat with the model does.

    The added tokens of the chat are named in braces. The token that the tokenizer puts before
    every text is left out.

    Raises:
        InputError: the tokenizer has no chat template, or one that fails.
    """
    chat = _chat(tokenizer).removeprefix(_added_before(tokenizer))
    chat = _added(tokenizer).sub(lambda found: f"{{{found[0].strip()}}}", chat)
    for field, place in _PLACES.items():
        chat = chat.replace(place, f"{{{field}}}")
    return f"{chat}{{answer}}"


def _chat(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has no chat template; {_INSTEAD}."
        )
    try:
        # Models that can think before they answer are told not to; other templates ignore this.
        chat: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": _REQUEST.format(**_PLACES)}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    # It is a program in Jinja.
    except Exception as error:
        raise InputError(
            f"The chat template of the tokenizer {tokenizer.name_or_path} fails "
            f"({in_a_line(error)}); {_INSTEAD}."
        ) from error
    return chat


def _added_before(tokenizer: Any) -> str:
    start = SegmentTokenizer.from_transformers(tokenizer).start
    return "".join(tokenizer.convert_ids_to_tokens(start))


def _added(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of the tokenizer's added tokens, the longer ones first.

    Some chats consist of tokens that are not special, and some tokens take in the blanks beside
    them. A template cannot name a token with a blank in its name.
    """
    tokens = [t for t in tokenizer.added_tokens_decoder.values() if not re.search(r"\s", t.content)]
    patterns = (
        rf"{_BLANKS * token.lstrip}{re.escape(token.content)}{_BLANKS * token.rstrip}"
        for token in sorted(tokens, key=lambda token: len(token.content), reverse=True)
    )
    return re.compile("|".join(patterns) or "(?!)")
