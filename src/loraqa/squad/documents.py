"""Read JSON of any shape: official SQuAD, articles, paragraphs, rows, columns, JSON Lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraqa.errors import InputError, some_of
from loraqa.squad.checks import Place
from loraqa.squad.intake import Intake
from loraqa.squad.official import read_article, read_official, read_paragraph
from loraqa.squad.records import is_record, read_record, rows_of_columns
from loraqa.squad.text import explain_json_error


def read_jsonl(text: str, intake: Intake) -> None:
    """Read an article, a paragraph or a row from every line, except blank ones."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            where, reason = explain_json_error(error, number)
            intake.report(Place(record=where), reason)
            intake.skipped["rows"] += 1
        else:
            _reader([record])(record, Place(record=f"line {number}"), intake)


def read_json(text: str, source: str, split: str, intake: Intake) -> None:
    """Read JSON of any shape, or JSON Lines from a file without a JSON Lines suffix."""
    try:
        document, end = json.JSONDecoder().raw_decode(text, _end_of_space(text, 0))
        end = _end_of_space(text, end)
        if end < len(text) and not _is_one(document):
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:
        where, reason = explain_json_error(error)
        raise InputError(f"{source}, {where}: {reason}; correct it there.") from None
    if end < len(text):
        read_jsonl(text, intake)
    else:
        _read_document(document, source, split, intake)


def _read_document(document: Any, source: str, split: str, intake: Intake) -> None:
    """Read a parsed JSON file: official, rows, paragraphs, a row, or splits of these."""
    if isinstance(document, list):
        _read_list(document, "", intake)
    elif not isinstance(document, dict):
        raise InputError(
            f"{source} is neither a JSON object nor a list; SQuAD's JSON is an object with "
            "'version' and 'data', JSON Lines have one object per line."
        )
    elif _is_one(document):
        _read_list(rows_of_columns(document) or [document], "", intake)
    elif "data" in document or not _splits(document):
        data = document.get("data")
        if isinstance(data, list) and any(_has(node, "qas") or is_record(node) for node in data):
            _read_list(data, "data", intake)
        else:
            read_official(document, intake)
    elif split in document:
        _read_document(document[split], source, "", intake)
    else:
        raise InputError(explain_splits(Path(source), _splits(document)))


def _read_list(nodes: list[Any], name: str, intake: Intake) -> None:
    """Read a list of articles, of paragraphs or of rows."""
    read = _reader(nodes)
    for number, node in enumerate(nodes):
        read(node, Place(f"{name}[{number}]"), intake)


def _reader(nodes: list[Any]) -> Callable[[Any, Place, Intake], None]:
    """Return the function that reads each of these nodes."""
    if any(_has(node, "paragraphs") for node in nodes):
        return read_article
    return read_paragraph if any(_has(node, "qas") for node in nodes) else read_record


def _is_one(node: Any) -> bool:
    """Return whether parsed JSON is an article, a paragraph or a row, or rows as columns."""
    return (_has(node, "paragraphs", "qas") or is_record(node)) and not _has(node, "data")


def _has(item: Any, *keys: str) -> bool:
    return isinstance(item, dict) and not item.keys().isdisjoint(keys)


def _splits(document: dict[str, Any]) -> list[str]:
    """Return the names of the splits: keys whose values are data themselves."""
    return [
        name
        for name, value in document.items()
        if (isinstance(value, list) and any(isinstance(row, dict) for row in value))
        or (isinstance(value, dict) and "data" in value)
    ]


def explain_splits(path: Path, splits: list[str]) -> str:
    """Return a message that names the splits of a source and how to choose one."""
    return f"{path} has the splits {some_of(splits)}; choose one, such as {path}:{splits[0]}."


def _end_of_space(text: str, start: int) -> int:
    return len(text) - len(text[start:].lstrip())
