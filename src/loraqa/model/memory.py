"""Memory: kept between steps, and its lack told in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from loraqa.errors import LoraqaError

# On the CPU and on some accelerators torch has no type of its own for this.
_SIGNS = ("can't allocate", "out of memory", "ALLOC_FAILED")
# Tokens to answer with at once: enough for a CPU's full rate, and more than any GPU needs.
_FEWEST_TOKENS, _MOST_TOKENS = 2**14, 2**18
# Numbers in a tensor: kernels compute their places in 32 bits.
_COUNTED = 2**31 - 1
# Of free memory, for keys and values: they are kept up to three times, and a layer's own numbers
# and the logits take their part.
_FOR_STATES = 1 / 8


def tokens_at_once(model: PreTrainedModel) -> int:
    """How many tokens of prompts and answers a model is to have in memory while it answers.

    On a GPU as many as fit: launching its kernels takes longer than small ones do, and the larger a
    batch, the fewer they are.
    """
    if model.device.type != "cuda":
        return _FEWEST_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    fitting = int(_FOR_STATES * free) // _bytes_of_states(model)
    return min(max(fitting, _FEWEST_TOKENS), _MOST_TOKENS, _COUNTED // _widest_row(model))


def _widest_row(model: PreTrainedModel) -> int:
    """Numbers of queries, keys and values of a token, which may lie side by side."""
    heads, _, size = _heads(model)
    return 3 * heads * size


def _bytes_of_states(model: PreTrainedModel) -> int:
    """Of the keys and values of one token; of models that keep something else, about as much."""
    _, key_heads, size = _heads(model)
    layers = model.config.get_text_config().num_hidden_layers
    return int(2 * layers * key_heads * size * model.dtype.itemsize)


def _heads(model: PreTrainedModel) -> tuple[int, int, int]:
    """How many heads queries have, and keys, and their size."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, key_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


# Where nothing has been trained yet, and there is no batch to make smaller.
ADVICE_TO_LOADERS = "free some of it, or choose a smaller model or another device"


class LackOfMemoryError(LoraqaError):
    """Memory was out: where, why, and what to do."""

    def __init__(self, where: str, reason: str, advice: str) -> None:
        super().__init__(f"Memory is out {where} ({reason}): {advice}.")
        self.reason = reason


@contextmanager
def explaining_lack_of_memory(where: str, advice: str) -> Iterator[None]:
    """Raise `LackOfMemoryError` where memory is out; of several around a call the outermost speaks.

    Args:
        where: what was being done, such as "in step 7".
        advice: what to do, such as "lower tokens_per_batch".
    """
    try:
        yield
    except LackOfMemoryError as error:
        raise LackOfMemoryError(where, error.reason, advice) from error
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise LackOfMemoryError(where, reason, advice) from error


def _is_lack_of_memory(error: Exception) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(sign in str(error) for sign in _SIGNS)
