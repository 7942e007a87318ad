"""How much memory is used, how many tokens fit into it, and the error when they do not."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel

from loraqa.errors import LoraqaError

# Only CUDA has an error type of its own for a lack of memory.
_SIGNS = ("can't allocate", "out of memory", "ALLOC_FAILED")
# Tokens to compute at once: on a CPU, and at most on a GPU.
_CPU_TOKENS, _MOST_TOKENS = 2**14, 2**18
# CUDA kernels index elements with 32-bit integers.
_MOST_ELEMENTS = 2**31 - 1
# The share of free memory for keys and values. They are kept up to three times, and a layer's
# activations and the logits need memory too.
_FOR_STATES = 1 / 8


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        # `max_memory_allocated` would flatten all statistics to read this one.
        peak: int = torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]["peak"]
        return peak
    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kept if sys.platform == "darwin" else kept * 2**10


def forget_peak_memory(device: torch.device) -> None:
    """Let the peak start again from what is used now. Only Linux and GPUs can do this."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def tokens_at_once(model: PreTrainedModel) -> int:
    """Return how many tokens of prompts and answers to keep in memory while answering.

    On a GPU that is as many as fit, because larger batches need fewer kernel launches.
    """
    if model.device.type != "cuda":
        return _CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    fitting = int(_FOR_STATES * free) // _bytes_of_states(model)
    return min(max(fitting, _CPU_TOKENS), _MOST_TOKENS, _MOST_ELEMENTS // _widest_row(model))


def _widest_row(model: PreTrainedModel) -> int:
    """Count the elements of a token's query, key and value; some models keep them in one tensor."""
    heads, _, size = _heads(model)
    return 3 * heads * size


def _bytes_of_states(model: PreTrainedModel) -> int:
    """Return the bytes of one token's keys and values; other states take about as much."""
    _, key_heads, size = _heads(model)
    layers = model.config.get_text_config().num_hidden_layers
    return int(2 * layers * key_heads * size * model.dtype.itemsize)


def _heads(model: PreTrainedModel) -> tuple[int, int, int]:
    """Return the number of query heads, the number of key heads, and the head size."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, key_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


# The advice before training and answering, when there is no batch to make smaller.
ADVICE_TO_LOADERS = (
    "free some of it, or choose a smaller model, or another device (--device; in a training, "
    "model.device)"
)


class LackOfMemoryError(LoraqaError):
    """Memory ran out. The message says where, why, and what to do."""

    def __init__(self, where: str, reason: str, advice: str) -> None:
        super().__init__(f"Out of memory {where} ({reason}): {advice}.")
        self.reason = reason


@contextmanager
def explaining_lack_of_memory(where: str, advice: str) -> Iterator[None]:
    """Raise `LackOfMemoryError` if memory runs out. If nested, the outermost message is used.

    Args:
        where: what was being done, such as "in step 7".
        advice: what to do, such as "lower tokens_per_batch".
    """
    try:
        yield
    except LackOfMemoryError as error:
        raise LackOfMemoryError(where, error.reason, advice) from error
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise LackOfMemoryError(where, reason, advice) from error


def is_lack_of_memory(error: Exception) -> bool:
    """Return whether an error of PyTorch or Python says that memory ran out."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(sign in str(error) for sign in _SIGNS)
