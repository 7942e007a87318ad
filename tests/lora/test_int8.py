"""Int8 layers against plain ones that hold the rounded weights, computed here row by row."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tests.conftest import assert_near
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

from loraqa.errors import InputError
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import load_adapter, save_adapter
from loraqa.lora.int8 import Int8Layer, quantise, quantise_all
from loraqa.lora.layer import lora_layers
from loraqa.lora.merge import merge
from loraqa.lora.settings import LoraSettings
from loraqa.speed.cpu import shared

# Warnings that PEFT's own calls to transformers and torch cause.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:fan_in_fan_out:UserWarning"
)

# With `mlp` or parts of `c_attn`, other layers are int8 and not adapted.
CASES = [
    ("gpt2", {"target_modules": "all-linear"}),
    ("gpt2", {"target_modules": "c_attn[q,v]", "dropout": 0.3}),
    ("gpt2", {"target_modules": "all-linear", "dora": True}),
    ("llama", {"target_modules": "all-linear"}),
    ("llama", {"target_modules": "mlp", "activated": True}),
    ("qwen2", {"target_modules": "all-linear"}),
]


def rounded(row: list[float], dtype: torch.dtype) -> Tensor:
    """Return a row of a weight as int8 keeps it."""
    exact = torch.tensor(row, dtype=dtype)
    step = exact.abs().max() / 127
    if step == 0:
        return exact
    codes = torch.tensor([round((number / step).item()) for number in exact])
    return codes.clamp(-127, 127).to(dtype) * step


def rows_of(layer: Any) -> Tensor:
    """Return W (out, in)."""
    return layer.weight.t() if isinstance(layer, Conv1D) else layer.weight


def with_rounded_weights(model: Any) -> Any:
    """Round the weights of the linear layers of a plain model, but of the head."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and name != "lm_head":
            rows = rows_of(layer.requires_grad_(False))
            for row in rows:
                row.copy_(rounded(row.tolist(), row.dtype))
    return model


def loss_of(model: Any, input_ids: Tensor) -> Tensor:
    torch.manual_seed(6)  # the same dropout
    loss: Tensor = model(input_ids=input_ids, labels=input_ids).loss
    return loss


@pytest.fixture
def pair(tiny_model, stir) -> Callable[..., list[Any]]:
    """Return a function that makes an adapted model with int8 weights, and its plain twin."""

    def make(family: str, options: dict[str, Any], dtype: torch.dtype) -> list[Any]:
        int8, plain = tiny_model(family, dtype), with_rounded_weights(tiny_model(family, dtype))
        quantise_all(int8)
        for model in (int8, plain):
            adapt(model, LoraSettings(rank=3, alpha=6.0, **options), invocation=[1])
            stir(model)
            model.train()
        return [int8, plain]

    return make


@settings(max_examples=60)
@given(
    st.sampled_from([nn.Linear, Conv1D]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.lists(
        st.lists(st.floats(-1e3, 1e3, width=16), min_size=4, max_size=4), min_size=1, max_size=5
    ),
)
def test_no_weight_is_off_by_more_than_half_a_step_of_its_row(
    kind: type[nn.Module], dtype: torch.dtype, rows: list[list[float]]
) -> None:
    layer: Any = Conv1D(len(rows), 4) if kind is Conv1D else nn.Linear(4, len(rows))
    exact = torch.tensor(rows, dtype=dtype)
    quantise("layer", layer, exact.t().contiguous() if kind is Conv1D else exact)
    half_steps = exact.double().abs().amax(dim=1, keepdim=True) / 127 / 2
    errors = (rows_of(layer).double() - exact.double()).abs()
    # Beside half a step, the step and the product with it are rounded to the dtype.
    rounding = 2 * torch.finfo(dtype).eps * exact.double().abs()
    assert (errors <= half_steps * (1 + 2**-6) + rounding).all()
    codes, steps = (each.detach().reshape(-1) for each in (layer.codes, layer.steps))
    assert layer.codes.dtype == torch.int8
    assert codes.numel() == exact.numel()
    assert steps.numel() == len(rows)
    by_row = layer.codes.t() if kind is Conv1D else layer.codes
    off = (exact.double() / steps.double()[:, None] - by_row.double()).abs()
    assert (off.clamp(max=127) <= 0.5 + 127 * 2**-8 * (by_row.abs() == 127)).all()
    assert layer.codes.min() >= -127


@pytest.mark.parametrize(("family", "options"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_loss_and_gradients_are_those_of_plain_layers_with_the_rounded_weights(
    pair, input_ids, family, options, dtype, tolerance
):
    results = []
    for model in pair(family, options, dtype):
        loss = loss_of(model, input_ids)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        results.append([loss.detach(), *torch.autograd.grad(loss, trained)])
    assert len(results[0]) >= 5
    for ours, expected in zip(*results, strict=True):
        assert_near(ours, expected, tolerance)


def test_projections_that_share_an_input_compute_together(pair):
    int8, plain = pair("llama", {}, torch.float64)
    results = []
    for model in (int8, plain):
        layers = [model.get_submodule(f"model.layers.0.mlp.{n}_proj") for n in ("gate", "up")]
        x = torch.linspace(-2, 2, 48, dtype=torch.float64).view(3, 16).requires_grad_()
        outputs = shared._together(layers, x) if model is int8 else [each(x) for each in layers]
        weights = [each.lora_A for each in layers] + [each.lora_B for each in layers]
        grads = torch.autograd.grad(sum(y.sin().sum() for y in outputs), [x, *weights])
        results.append([*outputs, *grads])
    for ours, expected in zip(*results, strict=True):
        assert_near(ours, expected, 1e-12)


def saved_for_backward(model: Any, input_ids: Tensor) -> tuple[int, Tensor]:
    """Return the bytes that autograd keeps beside the model's own parameters, and the loss."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(model, input_ids)
    return sum(kept.values()), loss


def held(root: Any) -> Iterator[Tensor]:
    """Yield the tensors that the nodes of a graph hold as attributes, unseen by hooks."""
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        yield from (
            each for each in getattr(node, "__dict__", {}).values() if torch.is_tensor(each)
        )


@pytest.mark.parametrize(("family", "options"), CASES)
def test_autograd_keeps_no_weight_that_was_computed(pair, input_ids, family, options):
    (ours, loss), (expected, _) = (
        saved_for_backward(model, input_ids) for model in pair(family, options, torch.float32)
    )
    assert ours <= expected
    assert not list(held(loss.grad_fn))


def test_the_head_and_what_it_shares_stay_in_full(tiny_model):
    for family, tied in (("gpt2", True), ("llama", False)):
        model = tiny_model(family, torch.float32, tied)
        expected = tiny_model(family, torch.float32, tied).get_output_embeddings().weight
        quantise_all(model)
        assert torch.equal(model.get_output_embeddings().weight, expected)
        names = [name for name, layer in model.named_modules() if isinstance(layer, Int8Layer)]
        assert len(names) == 2 * (4 if family == "gpt2" else 7)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_adapter_file_is_pefts(pair, tiny_model, logits, tmp_path, family):
    int8, _ = pair(family, {}, torch.float64)
    save_adapter(int8.eval(), tmp_path)
    theirs = PeftModel.from_pretrained(with_rounded_weights(tiny_model(family)), tmp_path)
    assert_near(logits(int8), logits(theirs), 1e-12)
    again = tiny_model(family)
    quantise_all(again)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(int8))


def test_merging_is_refused(pair, input_ids):
    int8, _ = pair("gpt2", {}, torch.float32)
    before = {name: layer.base.weight for name, layer in lora_layers(int8).items()}
    with pytest.raises(InputError, match=r"Merging needs the weights in full.*quantisation=none"):
        merge(int8, input_ids)
    for name, layer in lora_layers(int8).items():
        assert torch.equal(layer.base.weight, before[name])


def test_pissa_is_refused(tiny_model):
    model = tiny_model("llama", torch.float32)
    quantise_all(model)
    with pytest.raises(InputError, match=r"initialisation=pissa needs the weights in full"):
        adapt(model, LoraSettings(rank=3, initialisation="pissa"))
    assert not lora_layers(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tiny_model, value):
    model = tiny_model("gpt2", torch.float32)
    model.transformer.h[1].mlp.c_fc.weight.data[3, 2] = value
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc holds a NaN or an infinity.*another"):
        quantise_all(model)
