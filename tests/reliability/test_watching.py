"""A supervisor hears of every call that changes a file, and can kill the process or let it fail."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import needs_compiler

pytestmark = needs_compiler

# Files are changed in each way that Python has.
_CHANGES = """
import os, shutil
from pathlib import Path
a, b, folder = Path("a"), Path("b"), Path("folder")
a.write_text("first")
with a.open("a") as file:
    file.write("second")
    file.flush()
    os.fsync(file.fileno())
shutil.copyfile(a, b)
os.truncate(b, 2)
b.chmod(0o600)
folder.mkdir()
b.rename(folder / "b")
os.symlink("a", "link")
shutil.rmtree(folder)
a.read_text()
a.unlink()
"""


def watched(folder: Path, script: str, answers: dict[str, int]) -> dict[str, Any]:
    """Run a script whose calls get these answers, by number; return its status and its calls."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.reliability.watched", str(folder), script]
    done = subprocess.run(
        [*command, json.dumps(answers)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_every_change_is_announced_before_it_is_made(tmp_path: Path) -> None:
    result = watched(tmp_path / "place", _CHANGES, {})
    assert result["status"] == 0
    assert [call for call in result["calls"] if not call.startswith("read folder")] == [
        "open a",
        "write a",
        "open a",
        "write a",
        "fsync a",
        "read a",
        "open b",
        *["write b"] * 2,
        "write b",
        "chmod b",
        "mkdir folder",
        "rename b folder/b",
        "link a link",
        "unlink folder/b",
        "rmdir folder",
        "read a",
        "unlink a",
    ]


def test_a_call_fails_as_the_supervisor_says(tmp_path: Path) -> None:
    result = watched(tmp_path / "place", "import os; os.mkdir('a')", {"0": 28})
    assert "OSError: [Errno 28] No space left on device" in result["said"]
    assert not (tmp_path / "place" / "a").exists()


def test_a_process_dies_before_a_call(tmp_path: Path) -> None:
    result = watched(tmp_path / "place", "import os; os.mkdir('a'); os.mkdir('b')", {"1": -1})
    assert result["status"] == -9
    assert {path.name for path in (tmp_path / "place").iterdir()} == {"a", "tmp"}
