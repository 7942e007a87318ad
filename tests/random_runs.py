"""Adapters with random matrices, as trainings write them."""

from pathlib import Path
from typing import Any

import torch

from loraqa.adapter.base import describe_base
from loraqa.adapter.info import AdapterInfo, write_adapter_info
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model.load import load_base
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.invocation import invocation_of_questions
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template


def random_run(
    folder: Path,
    base: Path,
    seed: int,
    *,
    dtype: str = "float32",
    info: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write an adapter of a base to a folder, and return the folder.

    `info` are values for `AdapterInfo`, `settings` those for `LoraSettings`.
    """
    model, tokenizer = load_base(base, dtype=dtype, device="cpu")
    segments = SegmentTokenizer.from_transformers(tokenizer)
    facts = {
        **{"template": Template().text, "max_length": 200, "stride": 30},
        **{"max_answer_tokens": 9, "version": "1.1"},
        **(info or {}),
    }
    encoder = PromptEncoder(segments, Template(facts["template"]), 200, 30)
    invocation = invocation_of_questions(encoder)
    adapt(model, LoraSettings(**{"rank": 4, **settings}), seed, invocation)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(std=0.1, generator=generator)
    save_adapter(model, folder, base_name=str(base))
    described = describe_base(base, model, segments)
    write_adapter_info(folder, AdapterInfo(base=described, **facts))
    return folder
