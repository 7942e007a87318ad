"""The layer against the dense matrix W + s BA under plain autograd, and against PEFT's layer."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from tests.conftest import assert_near
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from loraqa.lora.layer import LoraLinear, Part

IN, OUT, RANK = 6, 12, 3
TWO_OF_THREE = (Part(0, 4, "q"), Part(8, 12, "v"))


def make_base(
    kind: type[nn.Module], width: int = IN, height: int = OUT, bias: bool = True
) -> nn.Module:
    base = Conv1D(height, width) if kind is Conv1D else nn.Linear(width, height, bias=bias)
    return base.double().requires_grad_(False)


def make_layer(base: nn.Module, rank: int = RANK, alpha: float = 7.0, **options: Any) -> LoraLinear:
    layer = LoraLinear(base, rank, alpha, **options)
    for matrix in (layer.lora_A, layer.lora_B):
        nn.init.normal_(matrix)
    return layer


def dense_output(layer: LoraLinear, x: Tensor) -> Tensor:
    """Return x (W + s BA)ᵀ + b, with W + s BA formed part by part."""
    weight = layer.base.weight if isinstance(layer.base, nn.Linear) else layer.base.weight.t()
    scale = layer.alpha / (math.sqrt(layer.rank) if layer.rank_stabilised else layer.rank)
    weight, first = weight.to(layer.lora_A.dtype), 0
    for index, part in enumerate(layer.parts):
        a = layer.lora_A[index * layer.rank : (index + 1) * layer.rank]
        b = layer.lora_B[first : first + part.stop - part.start]
        first += part.stop - part.start
        place = torch.zeros(layer.out_features, len(b), dtype=b.dtype)
        place[part.start : part.stop] = torch.eye(len(b), dtype=b.dtype)
        weight = weight + scale * place @ b @ a
    bias = 0 if layer.base.bias is None else layer.base.bias.to(weight.dtype)
    return x @ weight.t() + bias


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of a fixed nonlinear function of y."""
    return torch.autograd.grad((y.sin() + y.square()).sum(), inputs)


@st.composite
def layers(draw: st.DrawFn) -> LoraLinear:
    torch.manual_seed(draw(st.integers(0, 9)))
    width, height = draw(st.integers(1, 9)), draw(st.integers(3, 9))
    edges = sorted(draw(st.sets(st.integers(0, height), min_size=2, max_size=5)))
    parts = tuple(Part(*pair) for pair in pairwise(edges))
    kept = draw(st.lists(st.sampled_from(parts), unique=True).map(lambda r: sorted(r, key=str)))
    return make_layer(
        make_base(draw(st.sampled_from([nn.Linear, Conv1D])), width, height, draw(st.booleans())),
        draw(st.integers(1, 5)),
        draw(st.floats(0.1, 50)),
        rank_stabilised=draw(st.booleans()),
        parts=tuple(kept),
    )


@settings(max_examples=60)
@given(layers(), st.lists(st.integers(0, 4), max_size=3))
def test_outputs_and_gradients_equal_those_of_the_dense_matrix(
    layer: LoraLinear, shape: list[int]
) -> None:
    x = torch.randn(*shape, layer.in_features, dtype=torch.float64, requires_grad=True)
    inputs = [x, layer.lora_A, layer.lora_B]
    ours, dense = layer(x), dense_output(layer, x)
    assert_near(ours, dense, 1e-10)
    for our, expected in zip(gradients(ours, inputs), gradients(dense, inputs), strict=True):
        assert_near(our, expected, 1e-9)


@pytest.mark.parametrize("parts", [(), TWO_OF_THREE], ids=["whole", "parts"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(
    ("kind", "bias"), [(Conv1D, True), (nn.Linear, True), (nn.Linear, False)], ids=str
)
def test_gradcheck(
    kind: type[nn.Module], bias: bool, dropout: float, parts: tuple[Part, ...]
) -> None:
    layer = make_layer(make_base(kind, bias=bias), dropout=dropout, parts=parts)

    def answer(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same dropout mask in all of gradcheck's calls
        return torch.func.functional_call(layer, {"lora_A": a, "lora_B": b}, x)

    x = torch.randn(2, 5, IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(answer, (x, layer.lora_A, layer.lora_B))


def test_second_derivatives_raise() -> None:
    layer = make_layer(make_base(Conv1D))
    y = layer(torch.randn(2, IN, dtype=torch.float64)).square().sum()
    (gradient,) = torch.autograd.grad(y, layer.lora_A, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("parts", [(), TWO_OF_THREE], ids=["whole", "parts"])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_bf16_base_has_fp32_adapters_and_bf16_outputs(
    kind: type[nn.Module], parts: tuple[Part, ...]
) -> None:
    layer = make_layer(make_base(kind, 96, OUT).bfloat16(), parts=parts)
    x = torch.randn(40, 96).bfloat16().requires_grad_()
    exact_x = x.detach().float().requires_grad_()
    ours, exact = layer(x), dense_output(layer, exact_x)
    upstream = torch.randn(40, OUT).bfloat16()
    ours.backward(upstream)
    found = [ours.detach(), x.grad, layer.lora_A.grad, layer.lora_B.grad]
    assert [t.dtype for t in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    inputs = [exact_x, layer.lora_A, layer.lora_B]
    expected = [exact, *torch.autograd.grad(exact, inputs, upstream.float())]
    for mine, true in zip(found, expected, strict=True):
        assert (mine - true).norm() < 2**-7 * true.norm()


def test_dropout_equals_pefts() -> None:
    layer = make_layer(make_base(Conv1D), dropout=0.3)
    peft_layer = peft_twin(layer).train()
    x = torch.randn(50, IN, dtype=torch.float64)
    torch.manual_seed(1)
    ours = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, peft_layer(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(ours, layer.eval()(x))
    torch.testing.assert_close(layer(x), peft_layer.eval()(x), rtol=1e-12, atol=1e-12)


def peft_twin(layer: LoraLinear) -> PeftLinear:
    config = LoraConfig(
        r=layer.rank, lora_alpha=layer.alpha, lora_dropout=layer.dropout, fan_in_fan_out=True
    )
    twin = PeftLinear(
        layer.base, "default", config=config, r=layer.rank, lora_alpha=layer.alpha
    ).double()
    twin.lora_A["default"].weight.data.copy_(layer.lora_A.data)
    twin.lora_B["default"].weight.data.copy_(layer.lora_B.data)
    return twin


@pytest.mark.parametrize("parts", [(), TWO_OF_THREE], ids=["whole", "parts"])
def test_initial_outputs_equal_the_bases(parts: tuple[Part, ...]) -> None:
    base = make_base(Conv1D)
    layer = make_layer(base, parts=parts)
    layer.reset(torch.Generator().manual_seed(0))
    x = torch.randn(3, 4, IN, dtype=torch.float64)
    assert_near(layer(x), base(x), 1e-15)


def test_reset_draws_a_as_peft_does_and_only_from_its_generator() -> None:
    layer = make_layer(nn.Linear(400, 3), rank=50)
    before = torch.random.get_rng_state()
    layer.reset(torch.Generator().manual_seed(8))
    first = layer.lora_A.detach().clone()
    layer.reset(torch.Generator().manual_seed(8))
    assert torch.equal(first, layer.lora_A)
    assert torch.equal(before, torch.random.get_rng_state())
    theirs = PeftLinear(layer.base, "default", config=LoraConfig(r=50), r=50, lora_alpha=1)
    theirs = theirs.lora_A["default"].weight
    for statistic in (torch.std, torch.max, torch.min):
        torch.testing.assert_close(statistic(first), statistic(theirs.data), rtol=0.02, atol=0)
    assert not layer.lora_B.any()


def test_the_frozen_weight_is_shared_and_gets_no_gradient() -> None:
    base = make_base(nn.Linear).requires_grad_(True)
    layer = make_layer(base)
    layer(torch.randn(2, IN, dtype=torch.float64)).sum().backward()
    assert layer.frozen_weight.data_ptr() == base.weight.data_ptr()
    assert base.weight.grad is None
    assert base.bias.grad is None


@pytest.mark.parametrize("input_trained", [True, False])
def test_computes_only_the_products_needed(input_trained: bool) -> None:
    layer, n = make_layer(make_base(Conv1D)), 10
    x = torch.randn(n, IN, dtype=torch.float64, requires_grad=input_trained)
    with FlopCounterMode(display=False) as flops:
        layer(x).sum().backward()
    # The counter misses the two products that are added in place.
    frozen, low_rank = 2 * n * IN * OUT, 2 * n * RANK * (IN + OUT + IN + OUT)
    assert flops.get_total_flops() == frozen * (2 if input_trained else 1) + low_rank


class Operations(TorchDispatchMode):
    """Record the operations that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "fused"), [("cpu", 0), ("meta", 1)])
def test_the_large_product_adds_the_bias_except_on_a_cpu(device: str, fused: int) -> None:
    layer = make_layer(make_base(Conv1D)).to(device)
    x = torch.randn(5, IN, dtype=torch.float64, device=device)
    with Operations() as operations:
        assert layer(x).shape == (5, OUT)
    # The scaled product with A is another.
    assert operations.seen.count(torch.ops.aten.addmm.default) == 1 + fused


class Allocations(TorchDispatchMode):
    """Record every storage that an operation allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                # The tensor is kept so that its address is not reused.
                self.storages[leaf.untyped_storage().data_ptr()] = leaf
        return result

    def of_size(self, like: Tensor) -> int:
        size = like.untyped_storage().nbytes()
        return sum(t.untyped_storage().nbytes() == size for t in self.storages.values())


@pytest.mark.parametrize("parts", [(), TWO_OF_THREE], ids=["whole", "parts"])
def test_allocates_nothing_of_the_size_of_x_or_y_twice(parts: tuple[Part, ...]) -> None:
    layer = make_layer(make_base(Conv1D), rank=2, parts=parts)
    x = torch.randn(37, IN, dtype=torch.float64, requires_grad=True)
    with Allocations() as forward:
        y = layer(x)
    upstream = torch.randn_like(y)
    with Allocations() as backward:
        (dx,) = torch.autograd.grad(y, x, upstream)
    assert (forward.of_size(y), backward.of_size(dx)) == (1, 1)
