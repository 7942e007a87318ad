"""What a GPU runs, on one that is none: nothing is left on the CPU, and the results are as there.

Its kernels and its speed are not tested: that takes a real one.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils import backend_registration

from loraqa.squad import write_official
from tests.conftest import assert_near
from tests.train.conftest import PASSAGES, settings

needs_python_devices = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no devices written in Python",
)


@needs_python_devices
def test_training_and_answering_give_what_they_give_on_the_cpu(
    tiny_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.json"
    write_official(data, PASSAGES, "1.1")
    chosen = settings(
        f"model.source={tiny_folder}",
        "model.dtype=float32",
        "model.device=cpu",
        f"data.train={data}",
        # Rows are padded there, so that other numbers would be drawn.
        "lora.dropout=0",
        "optimisation.epochs=2",
        "evaluation.max_answer_tokens=8",
    )
    file = tmp_path / "settings.yaml"
    file.write_text(chosen.to_yaml())
    command = [sys.executable, "-m", "tests.pretended_gpu", str(file), str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here, there = json.loads(done.stdout)
    # It gives way to another one where anything is wrong with it.
    assert there["runner"] == "KernelRunner", done.stderr
    assert there["losses"] == pytest.approx(here["losses"], rel=1e-4)
    assert there["answers"] == here["answers"]
    assert_near(learned(tmp_path / "gpu"), learned(tmp_path / "cpu"), 0.01)


def learned(run: Path) -> Tensor:
    """All matrices B of a run's adapter, which were 0 before."""
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    return torch.cat([matrix.flatten() for name, matrix in adapter.items() if "lora_B" in name])
