"""Which models write text from left to right."""

from typing import Any

from loraqa.errors import InputError


def check_causal(name: str, config: Any) -> None:
    """Raise `InputError` if the model `name` is no causal one, by what its configuration is.

    An encoder of random weights may pass any trial of its outputs.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    if config.is_encoder_decoder:
        reason = "is an encoder-decoder"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        reason = "has no head that predicts the next token"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        reason = "is an encoder, which sees the tokens after the one to predict"
    else:
        return
    raise InputError(
        f"{name} is not a causal language model: a {kind} model {reason}; choose one that "
        "writes text from left to right, such as GPT-2, Llama or Qwen."
    )
