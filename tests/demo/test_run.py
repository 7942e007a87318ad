"""Messages of the demo, without its two minutes of work."""

import sys
from pathlib import Path

import pytest

from loraqa.demo.run import _next_steps


@pytest.mark.parametrize("on_path", [True, False])
def test_the_next_steps_name_a_command_that_the_shell_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: bool
) -> None:
    program = tmp_path / "loraqa"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path if on_path else tmp_path / "elsewhere"))
    monkeypatch.setattr(sys, "argv", [".venv/bin/loraqa", "demo"])
    called = {line.split()[0] for line in _next_steps(Path("demo-out")).splitlines()}
    assert called == {"loraqa" if on_path else ".venv/bin/loraqa"}
