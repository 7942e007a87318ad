"""What goes into a message is short, and says what it is about."""

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
def test_a_problem_is_told_in_a_line(problem: Exception, line: str) -> None:
    assert in_a_line(problem) == line


def test_a_compiler_is_not_the_problem_but_what_it_ran_into() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no triton\nand much more")

    torch.compiler.reset()
    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(torch.sin, backend=broken)(torch.zeros(1))
    assert "broken" in str(caught.value)
    assert in_a_line(caught.value) == "no triton"
