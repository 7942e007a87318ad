"""Summaries of exceptions for error messages."""

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from loraqa.errors import in_a_line


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ValueError("too long."), "too long"),
        (ValueError("\nno compiler!\nand much more"), "no compiler"),
        (ValueError(), "ValueError"),
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
