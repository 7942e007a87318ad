"""Answers are shown in their context, with an ellipsis wherever it is shortened."""

import io

import pytest
from rich.console import Console

from loraqa.answer.reader import Answered
from loraqa.report.answers import answer_lines

FAR = "far " * 20


def shown(context: str, text: str) -> str:
    """Return the line with the place of an answer, as a wide terminal shows it."""
    start = context.index(text)
    answer = Answered("q", text, -0.1, -0.1, start, start + len(text), 0.0)
    terminal = io.StringIO()
    console = Console(file=terminal, width=400)
    *_, place = answer_lines(context, ["Where?"], [answer])
    console.print(place)
    return terminal.getvalue().strip()


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("The mill is old.", "characters 4 to 8: The mill is old."),
        ("mill", "characters 0 to 4: mill"),
        (f"{FAR}The mill is old.", f"characters 84 to 88: …{FAR[-56:]}The mill is old."),
        (f"The mill is {FAR}", f"characters 4 to 8: The mill is {FAR[:56]}…"),
    ],
)
def test_an_ellipsis_marks_omitted_context_only(context: str, expected: str) -> None:
    assert shown(context, "mill") == expected
