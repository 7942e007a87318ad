"""Which of several adapters is meant: one by its name, or a weighted sum, "law:0.7+news:0.3".

Importing this loads no PyTorch.
"""

import re
from collections.abc import Collection

from loraqa.errors import InputError, did_you_mean, quote, some_of

_NAME = re.compile(r"[\w.-]+")
_WEIGHT = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")


def check_name(name: str) -> None:
    """Raise `InputError` unless an adapter can have this name."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{quote(name)} cannot be the name of an adapter; use letters, digits, dots, dashes "
            "and underscores."
        )


def parse_choice(text: str, known: Collection[str]) -> dict[str, float]:
    """Return the weights of the adapters that a text names; an adapter alone has the weight 1.

    Raises:
        InputError: the text is neither one of the names `known` nor a weighted sum of some.
    """
    if text in known:
        return {text: 1.0}
    weights: dict[str, float] = {}
    for term in text.split("+"):
        name, _, weight = term.partition(":")
        if name not in known:
            raise InputError(
                f"There is no adapter {quote(name)}{did_you_mean(name, known)}; give one of "
                f"{some_of(known, 20)}, or a weighted sum, such as {_example(known)}."
            )
        if not _WEIGHT.fullmatch(weight):
            raise InputError(
                f"{quote(text)} gives {name} no weight, a number such as 0.7; write a weighted sum "
                f"as {_example(known)}."
            )
        if name in weights:
            raise InputError(f"{quote(text)} names {name} twice; add its two weights.")
        weights[name] = float(weight)
    return weights


def _example(known: Collection[str]) -> str:
    return "+".join(f"{name}:{weight}" for name, weight in zip(known, (0.7, 0.3), strict=False))
