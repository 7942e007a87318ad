"""Where and with what a run is made: versions, machine, threads, device."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("loraqa", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def environment(device: torch.device, dtype: torch.dtype, command: str) -> dict[str, Any]:
    """Where and with what a run is made."""
    cuda = device.type == "cuda"
    return {
        "command": command,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return f"{models[0]} ({os.cpu_count()} threads)" if models else platform.processor()
