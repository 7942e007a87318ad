"""Summaries of exceptions for error messages."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from loraqa.errors import (
    InputError,
    LoraqaError,
    counted,
    did_you_mean,
    explain,
    in_a_line,
    shortened,
    some_of,
)


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ValueError("too long."), "too long"),
        (ValueError("\nno compiler!\nand much more"), "no compiler"),
        (ValueError(), "ValueError"),
        (ValueError("Not valid:\n  too long.\nmore"), "Not valid: too long"),
        (KeyError("swish"), "there is no 'swish'"),
    ],
)
def test_the_summary_is_the_first_line_of_the_message(problem: Exception, line: str) -> None:
    assert in_a_line(problem) == line


def test_the_summary_of_a_compiler_error_is_its_cause() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no triton\nand much more")

    torch.compiler.reset()
    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(torch.sin, backend=broken)(torch.zeros(1))
    assert "broken" in str(caught.value)
    assert in_a_line(caught.value) == "no triton"


@pytest.mark.parametrize(
    "error",
    [
        InputError("x" * 400_000),
        LoraqaError("x\n" * 200_000),
        OSError(2, "No such file or directory", "x" * 400_000),
        OSError("x" * 400_000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_messages_are_bounded(error: LoraqaError | OSError) -> None:
    message, _ = explain(error)
    assert 100 < len(message) < 4100


def test_short_messages_are_whole() -> None:
    assert explain(InputError("Too long.")) == ("Too long.", 2)
    assert explain(LoraqaError("Failed.")) == ("Failed.", 1)
    assert explain(FileNotFoundError(2, "No such file", "a.json")) == ("a.json: No such file.", 1)


def test_a_name_that_is_longer_than_a_path_is_wrong_input() -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on the system
        Path("x" * 100_000).stat()
    message, status = explain(caught.value)
    assert status == 2
    assert len(message) < 600


def test_what_is_shortened_keeps_both_ends() -> None:
    text = "".join(map(str, range(100)))
    assert shortened(text, len(text)) == text
    assert shortened(text, 20) == "0123456789 … 9596979899"
    assert len(some_of(["x" * 1000] * 100)) < 550


def test_counts_have_their_plural() -> None:
    assert [counted(n, "context") for n in (0, 1, 2000)] == [
        "0 contexts",
        "1 context",
        "2,000 contexts",
    ]


def test_the_most_similar_name_is_suggested() -> None:
    assert did_you_mean("bean", ["greedy", "beam", "span"]) == " (did you mean beam?)"
    assert did_you_mean("xyzzy", ["greedy", "beam", "span"]) == ""
