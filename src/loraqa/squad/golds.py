"""Bring the answers of every export into one form: a list of text and offset."""

import math
from typing import Any

from loraqa.squad.checks import Checks, Place

_NOWHERE = (0, -1)
# As pandas and databases write null; "None", "NA" and "null" may be answers.
_NULLS = ("", "nan", "<na>", "\\n")
_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def answer_nodes(value: Any, place: Place, checks: Checks) -> list[Any] | None:
    """Return answers as in official JSON, a list of objects with `text` and `answer_start`.

    `value` is such a list or one of its objects; an object with two lists, as on the hub, or with
    a text and a number; a list of texts; or a text. A number is a text, because tables hold years
    and amounts as numbers. Empty texts without a place mean "no answer". Report a problem and
    return None if the answers have another form.
    """
    if is_absent(value) or value == {}:
        return []
    if type(_text(value)) is str:
        value = [value]
    if type(value) is dict:
        value = _from_columns(value, place, checks)
    elif not checks.has_type(value, list, place):
        value = None
    if value is None:
        return None
    nodes = [_node(each) for each in value]
    return [] if all(map(_means_no_answer, nodes)) else nodes


def whole_number(value: Any) -> int | None:
    """Return an offset that is a whole number, a float without a fraction, or text of these."""
    if type(value) is str and len(value) < 40:
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return None
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def truth(value: Any) -> Any:
    """Return True or False for the ways to write them, None for an empty cell, else `value`."""
    return None if is_empty(value) else _TRUTH.get(str(value).strip().lower(), value)


def is_absent(value: Any) -> bool:
    """Return whether a cell of a table is empty: null, or not a number."""
    return value is None or (type(value) is float and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Return whether a cell is empty: absent, or text that is blank or a sign for null."""
    return is_absent(value) or (type(value) is str and value.strip().lower() in _NULLS)


def _text(value: Any) -> Any:
    """Return a text, also for a number and an absent value; other values as they are."""
    if is_absent(value):
        return ""
    if type(value) is float and value.is_integer():
        value = int(value)
    return str(value) if type(value) in (int, float) else value


def _node(answer: Any) -> Any:
    """Return an answer as an object; a value that is none as it is."""
    if type(answer) is not dict:
        text = _text(answer)
        return {"text": text} if type(text) is str else answer
    if "text" in answer and type(answer["text"]) is not str:
        answer = answer | {"text": _text(answer["text"])}
    if "start" in answer and "answer_start" not in answer:
        # Label Studio and others call the offset `start`.
        answer = answer | {"answer_start": answer["start"]}
    return answer


def _from_columns(columns: dict[str, Any], place: Place, checks: Checks) -> list[Any] | None:
    if "text" not in columns:
        checks.report(place, "'text' is missing")
        return None
    texts: Any = columns["text"]
    texts = texts if type(texts) is list else [texts]
    starts: Any = columns.get("answer_start", columns.get("start"))
    if type(starts) is not list:
        starts = [starts] * (len(texts) if is_absent(starts) or not texts else 1)
    if len(texts) != len(starts):
        checks.report(place, f"'text' has {len(texts)} entries, 'answer_start' {len(starts)}")
        return None
    pairs = zip(texts, starts, strict=True)
    return [{"text": text, "answer_start": start} for text, start in pairs]


def _means_no_answer(node: Any) -> bool:
    if type(node) is not dict or type(node.get("text")) is not str:
        return False
    start = node.get("answer_start")
    nowhere = is_empty(start) or whole_number(start) in _NOWHERE
    return nowhere and not node["text"].strip()
