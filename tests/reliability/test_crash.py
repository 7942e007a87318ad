"""A small crash study: kills, power cuts, failing disks and damages, a few of each kind.

On one family of models, because all are written and read by the same code; `make crash` tries both,
and `tests/test_families.py` resumes trainings of both.
"""

import re
import subprocess
import sys

import pytest
from tests.conftest import needs_compiler


@needs_compiler
@pytest.mark.timeout(900)
def test_everything_holds() -> None:
    command = [sys.executable, "-m", "reliability", "crash", "--quick", "--jobs", "1"]
    command += ["--families", "gpt2", "--kills", "5", "--faults", "1", "--damages", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {
        group: list(map(int, numbers.split()))
        for group, numbers in re.findall(r"^(\S.*?)((?: +\d+){4})$", done.stdout, re.MULTILINE)
    }
    assert counts["killed: train gpt2"][0] == 5
    tried, held, failed, _ = counts["all"]
    assert (held, failed) == (tried, 0)
    assert tried >= 30
