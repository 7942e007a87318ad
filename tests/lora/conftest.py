"""Fixtures: tiny random models, and adapters that change their logits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from loraqa.lora.layer import lora_layers

SPECIAL = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
LLAMA_LIKE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    **SPECIAL,
}


def tiny_config(family: str, tied: bool) -> PreTrainedConfig:
    if family == "gpt2":
        return GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=tied, **SPECIAL
        )
    kinds = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
    }
    return kinds[family](**LLAMA_LIKE, tie_word_embeddings=tied)


TinyModel = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Return a function that makes a tiny model of a family, always with the same weights."""

    def make(
        family: str = "gpt2", dtype: torch.dtype = torch.float64, tied: bool = True
    ) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(tiny_config(family, tied))
            # Large weights, so that attention is uneven and every layer changes the logits.
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def stir() -> Callable[[PreTrainedModel], None]:
    """Return a function that fills every A and B, loraqa's or PEFT's, with large noise."""

    def fill(model: PreTrainedModel) -> None:
        generator = torch.Generator().manual_seed(4)
        matrices = [p for name, p in model.named_parameters() if "lora_" in name]
        assert matrices
        for matrix in matrices:
            matrix.data.copy_(0.3 * torch.randn(matrix.shape, generator=generator))

    return fill


@pytest.fixture(scope="session")
def input_ids() -> Tensor:
    """Two rows of nine tokens."""
    return torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def logits(input_ids: Tensor) -> Callable[[PreTrainedModel], Tensor]:
    """Return a function that computes a model's logits of `input_ids`."""

    def run(model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return model(input_ids=input_ids).logits

    return run


@pytest.fixture(scope="session")
def base_state() -> Callable[[PreTrainedModel], dict[str, Tensor]]:
    """Return a function that collects the base weights by their names in the plain model."""

    def collect(model: PreTrainedModel) -> dict[str, Tensor]:
        state = model.state_dict()
        for name in lora_layers(model):
            del state[f"{name}.lora_A"], state[f"{name}.lora_B"]
        return {key.replace(".base.", "."): value for key, value in state.items()}

    return collect
