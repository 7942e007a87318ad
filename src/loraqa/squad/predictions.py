"""Read predictions and no-answer probabilities, in the JSON format of the official scripts."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from loraqa.errors import InputError
from loraqa.squad.checks import Checks, Place, listing
from loraqa.squad.text import BYTE_ORDER_MARK, decode, explain_json_error, read_bytes

_EXPECTED = 'it must be one JSON object whose keys are question ids, such as {"id1": "Oslo"}'


def read_predictions(path: str | Path) -> dict[str, str]:
    """Read predicted texts by question id; raise `InputError` for any other content."""
    checks = Checks()
    predictions = _read_object(Path(path), checks)
    for id, text in predictions.items():
        checks.has_type(text, str, Place(id=id))
    _stop_at_problems(checks, path)
    return predictions


def read_no_answer_probabilities(path: str | Path) -> dict[str, float]:
    """Read no-answer probabilities by question id; raise `InputError` for any other content.

    Any finite number is allowed, as in the official script: some models give a log ratio.
    """
    checks = Checks()
    probabilities = _read_object(Path(path), checks)
    for id, number in probabilities.items():
        if checks.has_type(number, float, Place(id=id)) and not math.isfinite(number):
            checks.report(Place(id=id), f"is {number}, must be finite")
    _stop_at_problems(checks, path)
    return probabilities


def _read_object(path: Path, checks: Checks) -> dict[str, Any]:
    """Return the file's JSON object with all numbers as floats; report duplicate keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                checks.report(Place(id=key), f"appears {count} times")
        return dict(pairs)

    text = decode(read_bytes(path), str(path)).removeprefix(BYTE_ORDER_MARK)
    try:
        document = json.loads(text, object_pairs_hook=unique, parse_int=float)
    except (ValueError, RecursionError) as error:
        where, reason = explain_json_error(error)
        raise InputError(f"{path}, {where}: {reason}; {_EXPECTED}.") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a JSON object at the top level; {_EXPECTED}.")
    if isinstance(document.get("data"), list):
        raise InputError(
            f"{path} holds questions; name a predictions file, and the questions with --data."
        )
    return document


def _stop_at_problems(checks: Checks, path: str | Path) -> None:
    if checks.problems:
        raise InputError(f"{listing(str(path), checks.problems)}\nCorrect the file.")
