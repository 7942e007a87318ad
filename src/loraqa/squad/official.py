"""Read and write official SQuAD JSON, v1.1 and v2.0."""

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from loraqa.errors import InputError
from loraqa.files import write_text
from loraqa.squad.checks import Place
from loraqa.squad.intake import Intake
from loraqa.squad.lookalikes import fold
from loraqa.squad.passage import Passage, Question, Version

_VERSIONS: dict[str, Version] = {"1.1": "1.1", "v1.1": "1.1", "2.0": "2.0", "v2.0": "2.0"}


def read_official(document: dict[str, Any], intake: Intake) -> None:
    """Pass every question of a parsed official file to `intake`."""
    intake.version = _version(document)
    for number, article in enumerate(intake.field(document, "data", list, Place()) or ()):
        read_article(article, Place(f"data[{number}]"), intake)


def read_article(article: Any, place: Place, intake: Intake) -> None:
    """Pass every question of an official article to `intake`."""
    paragraphs = None
    if intake.has_type(article, dict, place):
        paragraphs = intake.field(article, "paragraphs", list, place)
    if paragraphs is None:
        intake.skipped["articles"] += 1
        return
    title = intake.title(article, place)
    for number, paragraph in enumerate(paragraphs):
        read_paragraph(paragraph, place.inside(f"paragraphs[{number}]"), intake, title)


def read_paragraph(paragraph: Any, place: Place, intake: Intake, title: str = "") -> None:
    """Pass every question of an official paragraph to `intake`."""
    context, questions = None, None
    if intake.has_type(paragraph, dict, place):
        context = intake.context(paragraph, place)
        questions = intake.field(paragraph, "qas", list, place)
        title = title or intake.title(paragraph, place)
    if context is None or not questions:
        intake.skipped["paragraphs"] += 1
    for number, question in enumerate(questions or ()):
        intake.question(question, place.inside(f"qas[{number}]"), context, title)


def write_official(path: Path, passages: Iterable[Passage], version: Version) -> None:
    """Write official JSON.

    Raises:
        InputError: `version` is "1.1" and a question has no answer.
    """
    write_text(path, json.dumps(_document(passages, version), ensure_ascii=False) + "\n")


def _document(passages: Iterable[Passage], version: Version) -> dict[str, Any]:
    """Return the official JSON document; consecutive passages with one title form an article."""
    articles = [
        {"title": title, "paragraphs": [_paragraph(passage, version) for passage in group]}
        for title, group in groupby(passages, key=lambda passage: passage.title)
    ]
    return {"version": "1.1" if version == "1.1" else "v2.0", "data": articles}


def _version(document: dict[str, Any]) -> Version | None:
    """Return the version that the document declares; other exports write anything there."""
    declared = document.get("version")
    return _VERSIONS.get(declared) if isinstance(declared, str) else None


def _paragraph(passage: Passage, version: Version) -> dict[str, Any]:
    questions = [_question(question, version) for question in passage.questions]
    return {"context": passage.context, "qas": questions}


def _question(question: Question, version: Version) -> dict[str, Any]:
    node: dict[str, Any] = {"id": question.id, "question": question.text}
    node["answers"] = _answers(question)
    if version == "2.0":
        node["is_impossible"] = not question.answerable
    elif not question.answerable:
        raise InputError(
            f"Question {question.id!r} has no answer, which SQuAD v1.1 does not allow; "
            "write the data as version 2.0."
        )
    return node


def _answers(question: Question) -> list[dict[str, Any]]:
    """Return the golds with the offsets of their answers; -1 for one without a place."""
    placed = list(question.answers)
    nodes = []
    for gold in question.golds:
        found = placed and (gold == placed[0].text or fold(gold).strip() == fold(placed[0].text))
        nodes.append({"text": gold, "answer_start": placed.pop(0).start if found else -1})
    return nodes
