"""The compiled rotary embedding computes what the functions of transformers compute."""

import logging
from functools import partial
from typing import Any

import pytest
import torch
from tests.conftest import assert_near, needs_compiler, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, GPTNeoXConfig
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from loraqa.model.runner import TreeRunner
from loraqa.speed.cpu import rotary
from loraqa.speed.cpu.rotary import rotate_or
from loraqa.speed.trial import fastest

DTYPES = [torch.bfloat16, torch.float32]


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_gradients(rotate: Any, inputs: list[Tensor]) -> list[Tensor]:
    query, key = (each.requires_grad_() for each in inputs[:2])
    rotated = rotate(query, key, *inputs[2:])
    slopes = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape) for y in rotated]
    return [*rotated, *torch.autograd.grad(rotated, (query, key), slopes)]


def no_function(*_: Any) -> tuple[Tensor, Tensor]:
    raise AssertionError("the kernel should have computed this")


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "key_heads", "size"),
    [(1, 7, 4, 2, 8), (2, 3, 1, 1, 6), (1, 501, 9, 3, 64), (1, 0, 2, 1, 4)],
)
def test_it_is_the_rotation_of_transformers(
    dtype: torch.dtype, batch: int, tokens: int, heads: int, key_heads: int, size: int
) -> None:
    # Models cut queries and keys out of (B, T, heads · d), and angles of both halves may differ.
    query, key = (
        drawn(batch, tokens, count, size, dtype=dtype, seed=count).transpose(1, 2)
        for count in (heads, key_heads)
    )
    angles = [drawn(batch, tokens, size, dtype=dtype, seed=seed) for seed in (10, 11)]
    inputs = [query, key, *angles]
    exact = [each.double() for each in inputs]
    expected = with_gradients(apply_rotary_pos_emb, exact)
    actual = with_gradients(partial(rotate_or, no_function), inputs)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert_near(got, wanted, 4 * torch.finfo(dtype).eps)
        # Neither the heads' products nor the projections have to copy.
        assert got.transpose(1, 2).is_contiguous()


def test_what_the_kernel_does_not_know_goes_to_the_models_function() -> None:
    query, key = (drawn(1, 2, 3, 8, dtype=torch.float32, seed=0) for _ in range(2))
    wide, narrow = torch.ones(1, 3, 8), torch.ones(1, 3, 4)
    flat = torch.ones(3, 2, 8)
    asked: list[Any] = []

    def plain(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return args[:2]

    for given, options in (
        ((query, key, narrow, narrow), {}),
        ((query, key, wide.double(), wide.double()), {}),
        ((query, key, wide, wide), {"unsqueeze_dim": 1}),
        ((query, key, wide, narrow), {}),
        ((query, key[..., :4], wide, wide), {}),
        ((query, key[:, :, :2], wide, wide), {}),
        ((flat, flat, wide[0], wide[0]), {}),
    ):
        assert rotate_or(plain, *given, **options) == given[:2]
        assert asked.pop() == (given, options)


@needs_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_families_get_the_kernel(kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(kind, dtype)
    ids = torch.arange(20)[None]
    expected = model(ids).logits
    _, names = fastest(TreeRunner(model), ["training"])
    assert "compiled-rotary" in names
    model.set_attn_implementation("eager")
    called: list[str] = []
    call = rotary._call
    monkeypatch.setattr(
        rotary, "_call", lambda kernel, *x: called.append(kernel) or call(kernel, *x)
    )
    assert_near(model(ids).logits, expected, 0.03 if dtype == "bfloat16" else 1e-5)
    assert called == ["rotate"] * 4


@needs_compiler
def test_other_models_of_a_family_keep_their_function() -> None:
    fast, plain = tiny_model("llama"), tiny_model("llama")
    _, names = fastest(TreeRunner(fast), ["training"])
    assert "compiled-rotary" in names
    assert modeling_llama.apply_rotary_pos_emb is apply_rotary_pos_emb
    assert all("forward" not in vars(layer.self_attn) for layer in plain.model.layers)


@needs_compiler
def test_a_rotation_of_neighbours_stays(caplog: pytest.LogCaptureFixture) -> None:
    """Cohere rotates each number with the next one."""
    config = CohereConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=50,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with caplog.at_level(logging.INFO, "loraqa"):
        _, names = fastest(TreeRunner(model), ["training"])
    assert "compiled-rotary" not in names
    assert "compiled-rotary is not used, because its rotations" in caplog.text


@needs_compiler
def test_a_part_of_each_head_is_rotated_by_the_models_function() -> None:
    config = GPTNeoXConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=300,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(20)[None]
    expected = model(ids).logits
    fastest(TreeRunner(model), ["training"])
    model.set_attn_implementation("eager")
    assert_near(model(ids).logits, expected, 1e-5)


def test_it_is_for_known_dtypes_and_models_that_rotate() -> None:
    assert not rotary.applies(TreeRunner(tiny_model("llama", "float64")), frozenset())
    assert not rotary.applies(TreeRunner(tiny_model("gpt2")), frozenset())
    assert rotary.applies(TreeRunner(tiny_model("llama")), frozenset())
