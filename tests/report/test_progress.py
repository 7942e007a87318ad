"""Progress on standard error: a bar on a terminal, otherwise lines."""

import io
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from loraqa.answer.journal import Journal
from loraqa.report.progress import TrainingProgress, answering_progress, training_progress
from loraqa.report.time_left import Work

SPEED = {"questions_per_second": 12.34, "tokens_per_second": 100.0}
STEP = {"kind": "train", "loss": 2.3456, "seconds": 6.0, **SPEED}
FIGURES = {"exact_match": 40.0, "f1": 51.26, "total": 500}
SCORED = {"kind": "evaluation", "step": 2, "seconds": 90.0, **FIGURES}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    """Return the text without the codes for colours and cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 120) -> Terminal:
    """Replace standard error by a terminal."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    return terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the clock to a number of seconds."""
    now = [0.0]
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_lines_show_first_and_last_step_and_every_evaluation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with training_progress(Work(4, 600)) as show:
        for step in range(1, 5):
            show.record({**STEP, "step": step})
            if step == 2:
                show.record(SCORED)
    out, err = capsys.readouterr()
    first, scored, last = err.splitlines()
    assert out == ""
    assert first.startswith("step 1/4  loss 2.346  12.3 questions/s")
    assert scored == "step 2/4  EM 40.0  F1 51.3 of 500 dev questions"
    assert last.startswith("step 4/4")
    assert last.endswith("0:00 left")


# A training of ten steps that is scored before, in the middle and after. A step takes 12 seconds,
# but the first one, which compiles kernels, a minute. A scoring takes 90, but the first one 300.
WORK = Work(10, tokens_per_step=600, scorings=[0, 5, 10], answered_after=250)
HAPPENS = [
    *[("evaluation", 0, 300), ("train", 1, 60), *(("train", step, 12) for step in range(2, 6))],
    *[("evaluation", 5, 90), *(("train", step, 12) for step in range(6, 11))],
    ("evaluation", 10, 90),
]
# The questions that are answered afterwards are half as many as those of a scoring.
END = sum(seconds for _, _, seconds in HAPPENS) + 45


def play(show: TrainingProgress, clock: Callable[[float], None], after: int, last: int) -> float:
    """Let a process go on after one step and end with another; return the time then."""
    now = 0.0
    for kind, step, seconds in HAPPENS:
        now += seconds
        clock(now)
        figures = FIGURES if kind == "evaluation" else STEP | {"tokens_per_second": 600 / seconds}
        if step > after or after == 0:
            show.record({**figures, "kind": kind, "step": step, "seconds": seconds})
        if (kind, step) == ("train", last):
            break
    return now


def shown_left(text: str) -> str | None:
    """Return the last time left in a text."""
    found: list[str] = re.findall(r"(?:over )?[\d:]+ left", plain(text))
    return found[-1] if found else None


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("step", range(1, 11))
def test_a_training_shows_the_time_that_it_then_takes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock: Callable[[float], None],
    terminal: bool,
    step: int,
) -> None:
    stream = on_terminal(monkeypatch, columns=80) if terminal else None
    with training_progress(WORK) as show:
        now = play(show, clock, 0, step)
    shown = shown_left(stream.getvalue() if stream else capsys.readouterr().err)
    minutes, seconds = divmod(END - now, 60)
    assert shown == (None if step == 1 else f"{minutes:.0f}:{seconds:02.0f} left")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("step", "shown"),
    [
        # A process that has scored nothing does not know how long that takes.
        (4, None),
        (5, "over 1:00 left"),
        # Four steps, a scoring and what comes after.
        (6, "3:03 left"),
    ],
)
def test_a_resumed_training_estimates_time_from_its_own_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock: Callable[[float], None],
    terminal: bool,
    step: int,
    shown: str | None,
) -> None:
    stream = on_terminal(monkeypatch) if terminal else None
    with training_progress(WORK, done=3) as show:
        play(show, clock, 3, step)
    assert shown_left(stream.getvalue() if stream else capsys.readouterr().err) == shown


def test_the_time_left_runs_on_while_the_model_is_scored(
    monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    terminal = on_terminal(monkeypatch)
    with training_progress(WORK) as show:
        now = play(show, clock, 0, 5)
        show.scoring(0, 500)
        clock(now + 40)
        show.scoring(250, 500)
    minutes, seconds = divmod(END - now - 40, 60)
    *_, training, scoring = plain(terminal.getvalue()).splitlines()
    assert training.endswith(f"{minutes:.0f}:{seconds:02.0f} left")
    assert scoring.endswith("0:40 left")


def test_long_times_are_in_hours(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    with training_progress(Work(3, 600)) as show:
        for step in (1, 2):
            clock(3723.0 * step)
            show.record({**STEP, "step": step, "seconds": 3723, "tokens_per_second": 600 / 7446})
    assert capsys.readouterr().err.endswith("2:04:06 left\n")


def test_answering_estimates_the_time_for_all_parts(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    with answering_progress() as show:
        for done, seconds in ((0, 0), (1, 4), (10, 40), (11, 44), (30, 120)):
            clock(seconds)
            show(done, 40, "strategy 1 of 2: greedy")
        clock(130)
        show(40, 40)
    assert capsys.readouterr().err.splitlines() == [
        "answering 40 questions (strategy 1 of 2: greedy)",
        "answered 10 of 40 questions (strategy 1 of 2: greedy), 2:00 left",
        "answered 30 of 40 questions (strategy 1 of 2: greedy), 0:40 left",
        "answered 40 of 40 questions, 0:00 left",
    ]


def test_answers_of_several_strategies_are_given(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    with answering_progress(of="answer") as show:
        show(0, 2000, "greedy")
        clock(20)
        show(1000.5, 2000, "span")
    assert capsys.readouterr().err.splitlines() == [
        "giving 2,000 answers (greedy)",
        "gave 1,000 of 2,000 answers (span), 0:20 left",
    ]


def kept_journal(path: Path, clock: Callable[[float], None], batches: int) -> None:
    """Leave the journal of a work that was stopped; each of its batches took 20 seconds."""
    with suppress(KeyboardInterrupt), Journal(path, "model") as journal:
        for batch in range(batches):
            journal.once(str(batch), lambda batch=batch: clock(20.0 * (batch + 1)))
        raise KeyboardInterrupt


@pytest.mark.parametrize("terminal", [False, True])
def test_answers_from_a_journal_count_with_the_time_that_they_took(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock: Callable[[float], None],
    tmp_path: Path,
    terminal: bool,
) -> None:
    """Ten batches are answered in no time, which took 200 seconds before; thirty are left."""
    kept_journal(tmp_path / "journal", clock, 10)
    stream = on_terminal(monkeypatch) if terminal else None
    with Journal(tmp_path / "journal", "model") as journal:
        clock(5000)
        with answering_progress(journal) as show:
            show(0, 40)
            for batch in range(10):
                journal.once(str(batch), lambda: None)
            clock(5010)
            show(10, 40)
    seen = plain(stream.getvalue()) if stream else capsys.readouterr().err
    # 210 seconds for ten.
    assert "10:30 left" in seen


def test_each_scoring_estimates_its_own_time(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    with training_progress(Work(4, 600)) as show:
        for start in (0, 1000):
            for done, seconds in ((0, 0), (10, 20)):
                clock(start + seconds)
                show.scoring(done, 40)
    assert capsys.readouterr().err.splitlines() == 2 * [
        "answering 40 questions",
        "answered 10 of 40 questions, 1:00 left",
    ]


@pytest.mark.usefixtures("clock")
def test_training_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch, columns=80)
    with training_progress(Work(5474, 600)) as show:
        show.record({**STEP, "step": 1})
        show.record(SCORED)
        show.record({**STEP, "step": 1234})
    seen = terminal.getvalue()
    assert "1234/5474 loss 2.346  12.3 questions/s 0:00:00 7:04:00 left" in plain(seen)
    assert "step 2/5474  EM 40.0  F1 51.3 of 500 dev questions\n" in plain(seen)


def test_scoring_has_its_own_bar_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with training_progress(Work(4, 600)) as show:
        for done in (0, 8):
            show.scoring(done, 8)
        show.record(SCORED)
        scored = len(terminal.getvalue())
        show.scoring(0, 9)
    before, after = terminal.getvalue()[:scored], terminal.getvalue()[scored:]
    assert "Scoring" in before
    assert "0/9" in after
    assert "8/9" not in after


def test_answering_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with answering_progress() as show:
        show(3, 8, "strategy 1 of 2: span")
    seen = terminal.getvalue()
    assert "3/8" in seen
    assert "strategy 1 of 2: span" in seen
