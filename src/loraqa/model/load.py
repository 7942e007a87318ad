"""Loading a base model: its device, its dtype, its weights (or random ones)."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from loraqa.errors import InputError, some_of
from loraqa.lora.int8 import quantise_all
from loraqa.model.int8 import Int8Config
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory
from loraqa.model.source import ModelSource
from loraqa.prompt.segments import SegmentTokenizer

logger = logging.getLogger("loraqa")

_QUANTISATIONS = ("none", "int8")
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

# How many compiled products oneDNN and PyTorch keep. A step has about 20, the same in all layers.
_COMPILED_PRODUCTS = "64"


def load_base(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    random_weights: bool = False,
    quantisation: str = "none",
) -> tuple[PreTrainedModel, Any]:
    """Load a model as `load_model` does, with transformers' tokenizer of the model.

    Raises:
        InputError: as for `load_model`, or the tokenizer is missing, broken or another model's.
    """
    where = ModelSource(source, revision)
    config = where.config()
    tokenizer = where.tokenizer()
    segments = SegmentTokenizer.from_transformers(tokenizer)
    model = _load(where, config, dtype, device, random_weights, quantisation)
    check_vocabulary(segments, model)
    return model, tokenizer


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    random_weights: bool = False,
    quantisation: str = "none",
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        source: a local folder in transformers' layout, a GGUF file, or a model's name on the hub.
            A folder or file never touches the network.
        dtype: "float32", "bfloat16", "float16", "float64", or "auto": bfloat16 if the device
            computes in it, else float32.
        device: a torch device, or "auto": a GPU if there is one, else the CPU.
        revision: branch, tag or commit on the hub.
        random_weights: build the model from its configuration alone, for tests and benchmarks.
        quantisation: "int8" keeps the weights of linear layers, except the output head, in one byte
            each (see `Int8Layer`); "none" keeps them in the dtype.

    Raises:
        InputError: no such folder or model, the hub is out of reach, the model is not causal, or
            its weights are missing, broken, pickled or not those of its configuration, or hold
            what int8 cannot keep.
        LackOfMemoryError: the model does not fit into memory.
    """
    where = ModelSource(source, revision)
    return _load(where, where.config(), dtype, device, random_weights, quantisation)


def check_vocabulary(tokenizer: SegmentTokenizer, model: PreTrainedModel) -> None:
    """Check that the model has an embedding for every id of its tokenizer.

    Ids that no prompt and no answer holds, such as a padding token's, only cause a warning.

    Raises:
        InputError: prompts or answers may hold ids beyond the embedding.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    used, known = tokenizer.prompt_ids, tokenizer.all_ids
    if used > rows:
        raise InputError(
            f"The tokenizer {tokenizer.name} has {used:,} ids, but the model's embedding has only "
            f"{rows:,} rows; use the tokenizer that belongs to the model, or resize the embedding "
            "(`model.resize_token_embeddings`) and save the model again."
        )
    if known > rows:
        logger.warning(
            f"The tokenizer {tokenizer.name} has {known:,} ids, but the model's embedding only "
            f"{rows:,} rows; this does no harm, because prompts and answers never hold the others."
        )


@explaining_lack_of_memory("while the model was loaded", ADVICE_TO_LOADERS)
def _load(
    where: ModelSource,
    config: Any,
    dtype: str,
    device: str,
    random_weights: bool,
    quantisation: str,
) -> PreTrainedModel:
    _check_quantisation(quantisation)
    _keep_few_compiled_products()
    torch_device = choose_device(device)
    if torch_device.type == "cuda":
        # Triton kernels and CUDA graphs run on the current GPU.
        torch.cuda.set_device(torch_device)
    torch_dtype = choose_dtype(dtype, torch_device)
    if random_weights:
        model = _random_model(config, torch_dtype)
    else:
        options = {"quantization_config": Int8Config()} if quantisation == "int8" else {}
        model, report = where.model(dtype=torch_dtype, **options)
        _check_report(where.name, model, report)
    if quantisation == "int8":
        quantise_all(model)
        _release_files(model)
    return model.to(torch_device).eval()


def _release_files(model: PreTrainedModel) -> None:
    """Copy the parameters that still lie in the files' pages.

    One of them, such as the embedding, would keep all pages that were read in memory.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def _check_report(name: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Check transformers' report on the tensors in the files against those of the model.

    transformers would make up what is missing, and only log it.

    Raises:
        InputError: tensors are missing, have other sizes, or belong to more layers.
    """
    for key, found, expected in sorted(report["mismatched_keys"]):
        raise InputError(
            f"The weights of {name} are not those that its config.json describes: {key} is "
            f"{_shape(found)}, but config.json makes it {_shape(expected)}; correct config.json "
            "(vocab_size, if the vocabulary was resized), or save the model again."
        )
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"The weights of {name} lack {len(missing):,} tensors that its config.json requires: "
            f"{some_of(missing, 3)}; correct config.json, or save the model again."
        )
    unexpected = sorted(report["unexpected_keys"])
    kinds = {_without_numbers(key) for key in model.state_dict()}
    if more := [key for key in unexpected if _without_numbers(key) in kinds]:
        raise InputError(
            f"The weights of {name} have more layers than its config.json says: {some_of(more, 3)} "
            "would be left out; correct config.json, or save the model again."
        )
    if unexpected:
        logger.warning(
            f"{len(unexpected):,} tensors in the weights of {name} belong to no part of the model "
            f"and are left out: {some_of(unexpected, 3)}."
        )


def _without_numbers(key: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", key)


def _shape(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))


def choose_device(device: str) -> torch.device:
    """Return the device of that name; "auto" is the first accelerator, else the CPU."""
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        probe = torch.zeros(1, device=device)
        # A device without numbers, such as meta, is found out when one is read.
        probe.item()
        return probe.device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The device {device!r} cannot be used ({reason}); give auto, cpu or another one."
        ) from None


def on_its_gpu(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Return a context in which the GPU of a model is the current one, also in another thread.

    Triton kernels run on the current GPU, and each thread begins with the first one.
    """
    return torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext()


def _keep_few_compiled_products() -> None:
    """Bound what a processor's products in bfloat16 keep in memory, unless the user has done so.

    oneDNN compiles a product for each number of rows, and nearly every batch has its own. 1,024 are
    kept by default; on a processor with AMX each takes 5 MB. Both read these variables at the first
    such product.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, _COMPILED_PRODUCTS)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; "auto" is bfloat16 if the device computes in it."""
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise InputError(f"There is no dtype {dtype!r}; give auto or one of {', '.join(_DTYPES)}.")
    slow = (dtype == "bfloat16" and not _computes_bfloat16(device)) or (
        dtype == "float16" and not _computes_float16(device)
    )
    if slow:
        logger.warning(
            "The %s here does not seem to have instructions for %s, so computing in it may take up "
            "to a hundred times as long as in float32; give the dtype auto or float32.",
            "processor" if device.type == "cpu" else device,
            dtype,
        )
    return _DTYPES[dtype]


def _check_quantisation(quantisation: str) -> None:
    if quantisation not in _QUANTISATIONS:
        raise InputError(
            f"There is no quantisation {quantisation!r}; give one of {', '.join(_QUANTISATIONS)}."
        )


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def _computes_float16(device: torch.device) -> bool:
    return device.type != "cpu" or bool(torch.cpu._is_amx_fp16_supported())


def _random_model(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    logger.warning(
        "RANDOM WEIGHTS: the model is built from its configuration alone and has learned nothing; "
        "its scores and answers mean nothing. This is for tests and benchmarks."
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model
