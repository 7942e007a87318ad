"""Check that a job that was interrupted goes on with what it began with."""

import json
from collections.abc import Mapping
from typing import Any

from loraqa.errors import InputError, shortened


def check_begun_with(
    work: str, began: Mapping[str, Any], facts: Mapping[str, Any], anew: str
) -> None:
    """Raise `InputError` unless a job goes on with the facts with which it began.

    Args:
        work: what the message calls it.
        began, facts: plain JSON values by their names.
        anew: what to do to start anew.
    """
    for key in {**began, **facts}:
        if began.get(key) != facts.get(key):
            raise InputError(
                f"{work} began with another {key}, {_told(began.get(key))} and not "
                f"{_told(facts.get(key))}; leave the change out, or {anew}."
            )


def _told(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), 60)
