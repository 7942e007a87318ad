"""Answers are shown in their context, with an ellipsis wherever it is shortened."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from loraqa.answer.answered import Answered
from loraqa.documents import Document
from loraqa.report.answers import answer_lines, answers_json

FAR = "far " * 20


def shown(context: str, text: str) -> str:
    """Return the line with the place of an answer, as a wide terminal shows it."""
    start = context.index(text)
    answer = Answered("q", text, -0.1, -0.1, start, start + len(text), 0.0)
    terminal = io.StringIO()
    console = Console(file=terminal, width=400)
    *_, place = answer_lines(Document(context), ["Where?"], [[answer]])
    console.print(place)
    return terminal.getvalue().removesuffix("\n").lstrip()


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("The mill is old.", "characters 4 to 8: The mill is old."),
        ("mill", "characters 0 to 4: mill"),
        ("\n The mill \n", "characters 6 to 10: The mill"),
        (f"{FAR}The mill is old.", f"characters 84 to 88: …{FAR[-56:]}The mill is old."),
        (f"The mill is {FAR}", f"characters 4 to 8: The mill is {FAR[:56]}…"),
    ],
)
def test_an_ellipsis_marks_omitted_context_only(context: str, expected: str) -> None:
    assert shown(context, "mill") == expected


def lines(*answers: Answered) -> list[str]:
    terminal = io.StringIO()
    console = Console(file=terminal, width=400)
    for line in answer_lines(Document("The mill is old."), ["What?"], [answers]):
        console.print(line)
    return terminal.getvalue().splitlines()


def answer(text: str, **values: Any) -> Answered:
    return replace(Answered("q", text, -0.1, -0.1, None, None, 0.0), **values)


def test_other_answers_follow_the_first() -> None:
    shown = lines(
        answer("mill", votes=3),
        replace(answer("old"), start=12, end=15),
        answer("", no_answer_probability=0.25),
    )
    assert [line.strip() for line in shown] == [
        "What?",
        "mill  own probability 0.90, not calibrated, 3 votes",
        "not in the context",
        "old  own probability 0.90, not calibrated",
        "characters 12 to 15: The mill is old.",
        "no answer  probability 0.25 against the best answer",
    ]


def test_no_answer_has_no_place() -> None:
    shown = lines(answer("", confidence=0.7), answer("old", confidence=0.2))
    assert [line.strip() for line in shown] == [
        "What?",
        "no answer  confidence 0.70",
        "old  confidence 0.20",
        "not in the context",
    ]


def test_a_notable_probability_of_no_answer_is_told_beside_the_best_answer() -> None:
    unsure, sure = (answer("mill", no_answer_probability=own) for own in (0.3, 0.04))
    shown = lines(unsure, answer("old", no_answer_probability=0.6))
    assert shown[1].endswith('mill  own probability 0.90, not calibrated, "no answer" 0.30')
    assert shown[3].endswith("old  own probability 0.90, not calibrated")
    assert lines(sure)[1].endswith("mill  own probability 0.90, not calibrated")


def test_without_a_confidence_a_more_probable_no_answer_marks_the_best_answer() -> None:
    shown = lines(
        answer("mill", no_answer_probability=0.98), answer("", no_answer_probability=0.98)
    )
    facts = 'own probability 0.90, not calibrated, probably wrong, "no answer" 0.98'
    assert shown[1].endswith(f"mill  {facts}")
    # The confidence knows better.
    trusted = lines(answer("mill", no_answer_probability=0.6, confidence=0.5))[1]
    assert trusted.endswith('mill  confidence 0.50, "no answer" 0.60')


def test_a_best_answer_that_is_more_probably_wrong_is_marked() -> None:
    shown = lines(answer("mill", confidence=0.49), answer("old", confidence=0.2))
    assert shown[1].endswith("mill  confidence 0.49, probably wrong")
    assert shown[3].endswith("old  confidence 0.20")
    assert lines(answer("mill", confidence=0.5))[1].endswith("mill  confidence 0.50")


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (0.5, 0.5, "own probability 0.50"),
        (0.25, 0.75, "own probability 0.25 to 0.75"),
        (0.0, 0.004, "own probability below 0.01"),
    ],
)
def test_bounds_of_a_probability_are_shown_if_they_differ(
    least: float, most: float, expected: str
) -> None:
    found = answer("mill", probability_at_least=least, probability_at_most=most, exact=True)
    assert lines(found)[1].endswith(f"mill  {expected}, not calibrated")


def test_a_search_that_stopped_early_is_told() -> None:
    told = lines(answer("mill", paths=1200, exact=False))[1]
    assert "the search stopped after 1,200 paths and may have missed a better one" in told


def test_the_page_of_an_answer_is_told() -> None:
    document = Document.of_pages(["The mill", "is old."])
    old = replace(answer("old"), start=12, end=15)
    *_, place = answer_lines(document, ["What?"], [[old]])
    assert place.plain == "  page 2, characters 12 to 15: The mill is old."
    listed = answers_json(document, [[old, answer("new")]], 2)
    assert [each["page"] for each in listed["candidates"][0]] == [2, None]
    assert listed["answers"] == [listed["candidates"][0][0]]
    assert answers_json(Document(document.text), [[old]], 1)["answers"][0]["page"] is None
