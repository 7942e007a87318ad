"""The environment of a run: versions, machine, threads, device, accelerations."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("loraqa", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def environment(
    device: torch.device,
    dtype: torch.dtype,
    command: str,
    accelerations: Sequence[str] = (),
    processes: int = 1,
) -> dict[str, Any]:
    """Return what affects a run's result besides settings and data, if only by rounding."""
    cuda = device.type == "cuda"
    return {
        "command": command,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "accelerations": list(accelerations),
    }


def _processor() -> str:
    """Return the processor's name, as Linux says."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return f"{models[0]} ({os.cpu_count()} threads)" if models else platform.processor()
