"""A line says what is being waited for, and messages stand above it."""

import io
import logging
import sys

import pytest

from loraqa.notices import show_notices, status_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(written: str) -> list[str]:
    """Return the lines that a terminal shows at the end."""
    return [line.rpartition("\x1b[2K")[2] for line in written.split("\n")]


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    logger = logging.getLogger("loraqa")
    monkeypatch.setattr(logger, "handlers", [])
    return logger


def test_messages_stand_above_the_line_which_vanishes(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_notices()
    with status_line("Loading a model …"):
        assert shown(terminal.getvalue()) == ["Loading a model …"]
        logger.info("It has no adapter.")
        assert shown(terminal.getvalue()) == ["loraqa: It has no adapter.", "Loading a model …"]
    logger.info("Loaded.")
    assert shown(terminal.getvalue()) == ["loraqa: It has no adapter.", "loraqa: Loaded.", ""]


@pytest.mark.usefixtures("logger")
def test_a_long_line_is_shortened_so_that_it_can_be_cleared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    show_notices()
    with status_line(f"Loading {'a' * 100} …"):
        assert 0 < len(terminal.getvalue()) < 40


def test_a_silent_process_shows_no_line(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_notices()
    logger.setLevel(logging.ERROR)
    with status_line("Loading a model …"):
        pass
    assert terminal.getvalue() == ""


def test_no_line_is_written_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with status_line("Loading a model …"):
        pass
    assert file.getvalue() == ""
