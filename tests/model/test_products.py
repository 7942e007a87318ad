"""Products in bfloat16 keep a bounded number of compiled kernels in memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loraqa.model.load import load_model

VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

# Fills the cache, and prints how many MiB 300 products with other numbers of rows add.
GROWTH = """
import ctypes
import sys
from pathlib import Path
import torch
from loraqa.model.load import load_model

def resident():
    # Without what is free, but not yet returned to the system.
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

load_model(sys.argv[1], dtype="bfloat16", device="cpu")
x, weight = torch.randn(1000, 576).bfloat16(), torch.randn(1536, 576).bfloat16()
for first, last in ((200, 400), (400, 700)):
    before = resident()
    for rows in range(first, last):
        torch.nn.functional.linear(x[:rows], weight)
print(resident() - before)
"""


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() or sys.platform != "linux",
    reason="the processor has no instructions for bfloat16",
)
def test_memory_does_not_grow_with_the_number_of_batch_sizes(tiny_folder: Path) -> None:
    def growth(capacity: str | None) -> float:
        unset = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        chosen = dict.fromkeys(VARIABLES, capacity) if capacity else {}
        command = [sys.executable, "-c", GROWTH, str(tiny_folder)]
        printed = subprocess.run(command, env=unset | chosen, capture_output=True, check=True)
        return float(printed.stdout)

    # Measured: 1 MiB at most, and 185.
    assert growth(None) < 0.2 * growth("1024")


@pytest.mark.parametrize("chosen", [None, "1024"])
def test_a_capacity_that_the_user_chose_is_kept(
    chosen: str | None, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        # So that it is as before afterwards.
        monkeypatch.setenv(name, chosen or "")
        if chosen is None:
            monkeypatch.delenv(name)
    load_model(tiny_folder, device="cpu")
    assert [os.environ[name] for name in VARIABLES] == [chosen or "64"] * 2
