"""The model and the adapters that all contenders share, written to a folder once.

FOLDER/
    model/         tokenizer, and random weights in fp32; all dropout is 0
    all-linear/    an adapter in PEFT's format; B is not 0, so that A has a gradient too
    c_attn/        another adapter, of GPT-2 alone
    *.json         passages
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from benchmarks.text import TOKENIZER
from loraqa.adapter.base import describe_base
from loraqa.adapter.info import AdapterInfo, write_adapter_info
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model.load import load_base
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import DEFAULT_TEMPLATE, Template
from loraqa.prompt.tree import Tree
from loraqa.squad import Passage, read_passages

ADAPTERS = {
    "c_attn": LoraSettings(rank=8, alpha=16.0, target_modules=("c_attn",)),
    "all-linear": LoraSettings(rank=16, alpha=32.0, target_modules=("all-linear",)),
}
MAX_LENGTH = 1024
STRIDE = 128
MAX_ANSWER_TOKENS = 32
SMOLLM2 = (30, 576, 9, 3, 1536)
"""The arguments of `llama` that give the shape of SmolLM2-135M."""

_GPT2 = GPT2Config()
# Standard deviation of B: large enough to give A a gradient, small enough to change little else.
_B_SCALE = 0.01


def on_a_gpu() -> bool:
    """Whether a CUDA GPU is visible; all contenders use it then."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return the device that all contenders use."""
    return torch.device("cuda" if on_a_gpu() else "cpu")


def wait() -> None:
    """Wait until the GPU, if any, has finished its work; call this before reading the clock."""
    if on_a_gpu():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Task:
    """The input of every contender in training.

    Attributes:
        folder: the folder described above.
        adapter: a key of `ADAPTERS`.
        data: file of passages in the folder; every optimizer step takes all its questions.
        steps: number of timed steps, after one warm-up step.
        precision: "float32" or "bfloat16".
        reference: file with the reference gradient, see `clock.measure`.
        quantisation: "none", or "int8" for the frozen weights; peers know only "none".
    """

    folder: str
    adapter: str
    data: str
    steps: int
    precision: str
    reference: str | None = None
    quantisation: str = "none"

    @property
    def model_path(self) -> Path:
        """The folder of the base model."""
        return Path(self.folder) / "model"

    @property
    def adapter_path(self) -> Path:
        """The folder of the adapter to train further."""
        return Path(self.folder) / self.adapter

    def passages(self) -> list[Passage]:
        """Return the passages to train on."""
        return list(read_passages(Path(self.folder) / self.data).passages)

    def encoder(self) -> PromptEncoder:
        """Return the encoder whose tokens all contenders use."""
        tokenizer = SegmentTokenizer.from_transformers(
            AutoTokenizer.from_pretrained(self.model_path)
        )
        return PromptEncoder(tokenizer, Template(DEFAULT_TEMPLATE), MAX_LENGTH, STRIDE)

    def trees(self) -> list[Tree]:
        """Return the questions of a step as trees."""
        return self.encoder().encode_training(self.passages()).trees


def prepare(folder: str, family: str, size: Sequence[int]) -> dict[str, Any]:
    """Write a model of a family ("gpt2" or "llama") and a size, and its adapters."""
    path = Path(folder)
    random_model(family, size).save_pretrained(path / "model")
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(path / "model")
    for name in ADAPTERS if family == "gpt2" else ["all-linear"]:
        _write_adapter(path / name, path / "model", ADAPTERS[name])
    return {"family": family, "size": size}


def random_model(family: str, size: Sequence[int]) -> PreTrainedModel:
    """Return a model with random weights in fp32; `size` are the arguments of `gpt2` or `llama`."""
    torch.manual_seed(0)
    families: dict[str, Callable[..., PreTrainedModel]] = {"gpt2": gpt2, "llama": llama}
    return families[family](*size)


def gpt2(layers: int, width: int, heads: int) -> GPT2LMHeadModel:
    """Return a GPT-2 of this shape without dropout."""
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0
    )
    return GPT2LMHeadModel(config)


def llama(layers: int, width: int, heads: int, key_heads: int, inner: int) -> LlamaForCausalLM:
    """Return a Llama of this shape whose head is tied; its vocabulary is that of GPT-2's tokenizer.

    `inner` is the width of its MLPs.
    """
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        max_position_embeddings=MAX_LENGTH,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        num_key_value_heads=key_heads,
        tie_word_embeddings=True,
        vocab_size=_GPT2.vocab_size,
        bos_token_id=_GPT2.bos_token_id,
        eos_token_id=_GPT2.eos_token_id,
    )
    return LlamaForCausalLM(config)


def _write_adapter(folder: Path, source: Path, settings: LoraSettings) -> None:
    model, tokenizer = load_base(source, dtype="float32", device="cpu")
    adapt(model, settings)
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=_B_SCALE, generator=generator)
    save_adapter(model, folder)
    info = AdapterInfo(
        base=describe_base(source, model, SegmentTokenizer.from_transformers(tokenizer)),
        template=DEFAULT_TEMPLATE,
        max_length=MAX_LENGTH,
        stride=STRIDE,
        max_answer_tokens=MAX_ANSWER_TOKENS,
        version="1.1",
    )
    write_adapter_info(folder, info)
