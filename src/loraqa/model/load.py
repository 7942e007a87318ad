"""Loading a base model and its tokenizer: from a local folder, or from the hub by name."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from loraqa.errors import InputError
from loraqa.model.gelu import fuse_gelu
from loraqa.model.memory import (
    ADVICE_TO_LOADERS,
    explaining_lack_of_memory,
    keep_freed_memory,
)
from loraqa.prompt.segments import SegmentTokenizer

logger = logging.getLogger("loraqa")

# For models whose positions have no table, such as ALiBi's: as long as GPT-2's.
_NO_LIMIT = 1024
# Seconds that the hub has to answer.
_HUB_TIMEOUT = 10.0
_CHOICE = (
    "a folder with config.json, model.safetensors and the tokenizer, or a model's name on the hub"
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@explaining_lack_of_memory("while the model was loaded", ADVICE_TO_LOADERS)
def load_base(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    random_weights: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model in eval mode, and its tokenizer.

    Args:
        source: a local folder in transformers' layout, or a model's name on the hub. A folder
            never touches the network.
        dtype: "float32", "bfloat16", "float64", or "auto": bfloat16 where the processor computes
            in it, else float32.
        device: a torch device, or "auto": a GPU if there is one.
        revision: branch, tag or commit on the hub.
        random_weights: build the model from its configuration alone, for tests and benchmarks.

    Raises:
        InputError: no such folder or model, the hub is out of reach, or the weights are pickled.
        LackOfMemoryError: the model does not fit into memory.
    """
    torch_device = choose_device(device)
    if torch_device.type == "cuda":
        # Of several GPUs, kernels and graphs of our own are launched on the current one.
        torch.cuda.set_device(torch_device)
    torch_dtype = choose_dtype(dtype, torch_device)
    where = _Source(source, revision)
    tokenizer = where.load(AutoTokenizer)
    if random_weights:
        model = _random_model(where.load(AutoConfig), torch_dtype)
    else:
        model = where.load(AutoModelForCausalLM, dtype=torch_dtype, use_safetensors=True)
    fuse_gelu(model)
    keep_freed_memory()
    return model.to(torch_device).eval(), tokenizer


def load_tokenizer(source: str | Path, revision: str | None = None) -> tuple[SegmentTokenizer, Any]:
    """Load a base model's tokenizer, wrapped for prompts, and the model's configuration.

    Raises:
        InputError: as `load_base`, or the tokenizer cannot encode prompts.
    """
    where = _Source(source, revision)
    return SegmentTokenizer(where.load(AutoTokenizer)), where.load(AutoConfig)


def position_limit(config: Any) -> int:
    """The longest input a model of this configuration takes, in tokens."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else _NO_LIMIT


def choose_max_length(wanted: int | None, config: Any) -> int:
    """How long a path of a tree may be, in tokens: as wanted, else as long as the model takes.

    Raises:
        InputError: the model takes no such length.
    """
    limit = position_limit(config)
    if wanted and wanted > limit:
        raise InputError(
            f"A length of {wanted} tokens is wanted, but the model takes no more than {limit}; "
            "lower max_length."
        )
    return wanted or limit


def choose_device(device: str) -> torch.device:
    """The device of that name, or the first accelerator for "auto"."""
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The device {device!r} cannot be used ({reason}).") from None


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of that name, or for "auto" bfloat16 where the device computes in it."""
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise InputError(f"The dtype {dtype!r} is none of auto, {', '.join(_DTYPES)}.")
    if dtype == "bfloat16" and not _computes_bfloat16(device):
        logger.warning(
            "It is not known that the %s here multiplies bfloat16 matrices; without, they take up "
            "to a hundred times as long as float32: give the dtype auto or float32.",
            "processor" if device.type == "cpu" else device,
        )
    return _DTYPES[dtype]


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


class _Source:
    """A folder or a name on the hub."""

    def __init__(self, source: str | Path, revision: str | None) -> None:
        self.name = str(source)
        self.revision = revision
        folder = Path(source).expanduser()
        self.is_folder = folder.is_dir()
        if not self.name:
            raise InputError(f"The model's name is empty; give {_CHOICE}.")
        if self.is_folder and not (folder / "config.json").exists():
            raise InputError(f"The folder {self.name} has no config.json; give {_CHOICE}.")
        if not self.is_folder and looks_like_a_path(self.name):
            raise InputError(f"There is no folder {self.name}; give {_CHOICE}.")

    def load(self, kind: Any, **options: Any) -> Any:
        """Call `from_pretrained`, and say in one sentence why it failed."""
        try:
            with no_bars() if self.is_folder else nullcontext():
                return kind.from_pretrained(
                    str(Path(self.name).expanduser()) if self.is_folder else self.name,
                    revision=self.revision or "main",
                    local_files_only=not self._hub_answers,
                    trust_remote_code=False,
                    **options,
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(self._explain(error)) from error

    @cached_property
    def _hub_answers(self) -> bool:
        """Whether to ask the hub. Where it is out of reach, transformers would try for long."""
        if self.is_folder or constants.HF_HUB_OFFLINE:
            return False
        try:
            HfApi().model_info(self.name, revision=self.revision, timeout=_HUB_TIMEOUT)
        except HfHubHTTPError as error:
            raise InputError(self._explain(error)) from error
        # Whatever the network throws; there may be a copy from an earlier download.
        except Exception:
            return False
        return True

    def _explain(self, error: Exception) -> str:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        if self.is_folder:
            return f"The model folder {self.name} cannot be loaded ({reason}); give {_CHOICE}."
        return (
            f"There is no folder {self.name}, nor could a model of this name be loaded from the "
            f"hub ({reason}); check the name and the connection, or download it where there is one "
            f"(`hf download {self.name} --local-dir FOLDER`) and give the folder."
        )


@contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' bars: a folder is read or written in a moment, unlike a download."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def looks_like_a_path(name: str) -> bool:
    """Whether what is no folder was meant as one, rather than as a model's name on the hub."""
    in_a_folder = "/" in name and Path(Path(name).parts[0]).is_dir()
    return in_a_folder or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/")


def _random_model(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    logger.warning(
        "RANDOM WEIGHTS: the model is built from its configuration alone and has learned nothing; "
        "its scores and answers mean nothing. This is for tests and benchmarks."
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model
