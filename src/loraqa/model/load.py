"""Loading a base model: its device, its dtype, its weights (or random ones)."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from loraqa.errors import InputError
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory
from loraqa.model.source import ModelSource

logger = logging.getLogger("loraqa")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_base(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    random_weights: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a model as `load_model` does, with transformers' tokenizer of the model."""
    where = ModelSource(source, revision)
    tokenizer = where.load(AutoTokenizer)
    return _load(where, dtype, device, random_weights), tokenizer


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    random_weights: bool = False,
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        source: a local folder in transformers' layout, or a model's name on the hub. A folder
            never touches the network.
        dtype: "float32", "bfloat16", "float64", or "auto": bfloat16 if the device computes in it,
            else float32.
        device: a torch device, or "auto": a GPU if there is one, else the CPU.
        revision: branch, tag or commit on the hub.
        random_weights: build the model from its configuration alone, for tests and benchmarks.

    Raises:
        InputError: no such folder or model, the hub is out of reach, or the weights are pickled.
        LackOfMemoryError: the model does not fit into memory.
    """
    return _load(ModelSource(source, revision), dtype, device, random_weights)


@explaining_lack_of_memory("while the model was loaded", ADVICE_TO_LOADERS)
def _load(where: ModelSource, dtype: str, device: str, random_weights: bool) -> PreTrainedModel:
    torch_device = choose_device(device)
    if torch_device.type == "cuda":
        # Triton kernels and CUDA graphs run on the current GPU.
        torch.cuda.set_device(torch_device)
    torch_dtype = choose_dtype(dtype, torch_device)
    if random_weights:
        model = _random_model(where.load(AutoConfig), torch_dtype)
    else:
        model = where.load(AutoModelForCausalLM, dtype=torch_dtype, use_safetensors=True)
    return model.to(torch_device).eval()


def choose_device(device: str) -> torch.device:
    """Return the device of that name; "auto" is the first accelerator, else the CPU."""
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The device {device!r} cannot be used ({reason}).") from None


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; "auto" is bfloat16 if the device computes in it."""
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise InputError(f"There is no dtype {dtype!r}; give auto or one of {', '.join(_DTYPES)}.")
    if dtype == "bfloat16" and not _computes_bfloat16(device):
        logger.warning(
            "The %s here does not seem to have instructions for bfloat16, so computing in it may "
            "take a hundred times as long as in float32; give the dtype auto or float32.",
            "processor" if device.type == "cpu" else device,
        )
    return _DTYPES[dtype]


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def _random_model(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    logger.warning(
        "RANDOM WEIGHTS: the model is built from its configuration alone and has learned nothing; "
        "its scores and answers mean nothing. This is for tests and benchmarks."
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model
