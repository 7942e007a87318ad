"""What the user sees: on a terminal a bar, else lines, both on standard error."""

import io
import sys
from typing import Any

import pytest

from loraqa.train.progress import PlainLines, show_progress

STEP = {"kind": "train", "loss": 2.3456, "questions_per_second": 12.34}
SCORED = {"kind": "evaluation", "step": 2, "exact_match": 40.0, "f1": 51.26, "total": 500}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_tell_the_first_and_last_step_and_every_scoring() -> None:
    stream = io.StringIO()
    lines = PlainLines(total=4, done=0, stream=stream, interval=3600)
    for step in range(1, 5):
        lines({**STEP, "step": step})
        if step == 2:
            lines(SCORED)
    first, scored, last = stream.getvalue().splitlines()
    assert first.startswith("step 1/4  loss 2.346  12.3 questions/s")
    assert scored == "step 2/4  EM 40.0  F1 51.3 of 500 dev questions"
    assert last.startswith("step 4/4")
    assert last.endswith("0:00 left")


def test_lines_come_as_often_as_asked() -> None:
    stream = io.StringIO()
    lines = PlainLines(total=4, done=0, stream=stream, interval=0)
    for step in range(1, 5):
        lines({**STEP, "step": step})
    assert len(stream.getvalue().splitlines()) == 4


def test_without_a_terminal_there_are_lines_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress(4, 1) as show:
        show({**STEP, "step": 2})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("step 2/4")


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: Any = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with show_progress(4) as show:
        show({**STEP, "step": 2})
        show(SCORED)
    seen = terminal.getvalue()
    assert "2/4" in seen
    assert "loss 2.346  12.3 questions/s" in seen
    assert "EM 40.0  F1 51.3" in seen
