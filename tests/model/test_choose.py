"""The runner chosen for a model computes what transformers computes of each row alone."""

import logging
import re
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import assert_near, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from loraqa.errors import InputError
from loraqa.model.choose import choose_runner
from loraqa.model.runner import PaddedRunner, RecomputingRunner, TreeRunner
from loraqa.prompt.tree import Tree

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 300,
    # Larger weights than usual, so that a state gone wrong shows in the logits.
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
MODELS: dict[str, dict[str, Any]] = {
    "phi": ATTENTION,
    "gemma": ATTENTION | {"head_dim": 8},
    "gpt_neox": ATTENTION,
    # It computes trees although it does not say that it uses the attention interface.
    "biogpt": ATTENTION,
    "olmo2": ATTENTION,
    "gemma2": ATTENTION | {"head_dim": 8},
    "gpt_oss": ATTENTION
    | {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "mamba": {"state_size": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": 256},
    "jamba": ATTENTION
    | {
        "mamba_d_state": 8,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "qwen3_next": ATTENTION
    | {
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of two layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **SIZES | MODELS[kind])
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to(dtype).eval()


def bloom() -> Any:
    config = transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=300)
    return transformers.BloomForCausalLM(config).eval()


def alone(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """The last logits of each row, computed alone."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in rows])


def paths(trees: list[Tree]) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each branch."""
    return [([*t.trunk, *b.prompt], list(b.answer)) for t in trees for b in t.branches]


def extended(rows: list[list[int]], tokens: torch.Tensor) -> list[list[int]]:
    return [[*ids, token] for ids, token in zip(rows, tokens.tolist(), strict=True)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_known_models_take_trees(kind: str, dtype: str) -> None:
    assert isinstance(choose_runner(tiny_model(kind, dtype), 200), TreeRunner)


@pytest.mark.parametrize("kind", ["phi", "gemma", "gpt_neox", "olmo2", "biogpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_plain_attention_take_trees(kind: str, dtype: torch.dtype) -> None:
    assert isinstance(choose_runner(model_of(kind, dtype), 200), TreeRunner)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_cap_products_or_have_sinks_take_the_padded_path(
    kind: str, dtype: torch.dtype
) -> None:
    # Without the cap, these small products would come out the same but for rounding.
    assert isinstance(choose_runner(model_of(kind, dtype), 100), PaddedRunner)


def test_decoding_is_not_tried_for_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreeRunner, "prefill", lambda *_: 1 / 0)
    assert isinstance(choose_runner(tiny_model("gpt2"), 200, answering=False), TreeRunner)
    assert isinstance(choose_runner(tiny_model("gpt2"), 200), PaddedRunner)
    assert isinstance(choose_runner(model_of("gemma2"), 100, answering=False), PaddedRunner)


def test_a_short_sliding_window_takes_the_padded_path(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("mistral")
    model.config.sliding_window = 100
    with caplog.at_level(logging.WARNING, "loraqa"):
        assert isinstance(choose_runner(model, 200), PaddedRunner)
    assert caplog.messages == [
        "A mistral model cannot compute trees, because its sliding window of 100 tokens is shorter "
        "than 200; every question is computed with its own copy of the context, which is slower."
    ]
    assert isinstance(choose_runner(model, 100), TreeRunner)


def test_a_model_whose_attention_ignores_the_tree_takes_the_padded_path(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "loraqa"):
        assert isinstance(choose_runner(bloom(), 200), PaddedRunner)
    *_, message = caplog.messages
    assert message == (
        "A bloom model cannot compute trees, because its attention cannot be replaced by way of "
        "transformers' attention interface; every question is computed with its own copy of the "
        "context, which is slower."
    )


def test_a_model_that_looks_at_padding_is_given_none_on_its_left() -> None:
    model = bloom()
    model.register_forward_pre_hook(
        lambda _, args, options: (args, options | {"attention_mask": None}), with_kwargs=True
    )
    assert isinstance(choose_runner(model, 200), RecomputingRunner)


def test_a_model_that_looks_ahead_is_refused() -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=300
    )
    with pytest.raises(InputError) as caught:
        choose_runner(transformers.BertLMHeadModel(config).eval(), 200)
    assert re.fullmatch(
        "A bert model cannot be used: even with padding on the right, where a causal model does "
        r"not look, its logits differ from those of each question alone \(relative error 0\.\d+\); "
        r"choose a causal language model, such as GPT-2\.",
        str(caught.value),
    )


# Models that keep a state, or a state beside keys and values, or cap their products.
WITHOUT_TREES = {
    "mamba": RecomputingRunner,
    "rwkv": RecomputingRunner,
    "jamba": PaddedRunner,
    "qwen3_next": PaddedRunner,
    "gemma2": PaddedRunner,
}


@pytest.mark.parametrize("kind", WITHOUT_TREES)
class TestModelsWithoutTrees:
    """Training and decoding, against each row alone."""

    def test_training(self, kind: str, trees: list[Tree]) -> None:
        model = model_of(kind)
        runner = choose_runner(model, 200)
        assert isinstance(runner, WITHOUT_TREES[kind])
        with torch.no_grad():
            logits, targets = runner.answer_logits(trees)
        rows = [
            [*prompt, *answer[:place]]
            for prompt, answer in paths(trees)
            for place in range(len(answer))
        ]
        assert_near(logits, alone(model, rows), 1e-4)
        assert targets.tolist() == [token for _, answer in paths(trees) for token in answer]

    def test_decoding(self, kind: str, prompts: list[Tree]) -> None:
        model = model_of(kind)
        session, logits = choose_runner(model, 200).prefill(prompts)
        rows = [prompt for prompt, _ in paths(prompts)]

        def check(logits: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
            assert_near(logits, alone(model, rows), 1e-4)
            return logits.argmax(dim=-1)

        tokens = check(logits, rows)
        forks = torch.tensor([4, 1, 1, 0])
        other = session.fork(forks)
        # Two forks of one row go different ways.
        others = torch.stack([tokens[4], tokens[1], tokens[1] + 1, tokens[0]])
        other_rows = extended([rows[fork] for fork in forks], others)
        others = check(other.advance(others), other_rows)
        for _ in range(3):
            rows = extended(rows, tokens)
            tokens = check(session.advance(tokens), rows)
        kept = torch.tensor([2, 0, 1])
        other.select(kept)
        other_rows = extended([other_rows[row] for row in kept], others[kept])
        check(other.advance(others[kept]), other_rows)


def test_a_model_of_few_positions_is_refused_in_words() -> None:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=300, n_positions=12)
    )
    with pytest.raises(InputError) as caught:
        choose_runner(model, 24)
    assert str(caught.value) == (
        "A model that takes no more than 12 tokens cannot read a context, a question and an "
        "answer; choose one that takes more."
    )


def test_a_model_whose_logits_are_not_finite_is_refused() -> None:
    model = tiny_model("gpt2")
    model.transformer.h[1].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError) as caught:
        choose_runner(model, 200)
    assert str(caught.value) == (
        "The gpt2 model gives logits that are not finite; its weights are damaged, or need another "
        "dtype (--dtype; in a training, model.dtype), such as float32."
    )
