"""Try each acceleration of a model, compare it with the plain algorithm, and fall back.

`fastest` wraps the runner and compares each part that the acceleration replaced: attention,
decoding or gradients. An acceleration that has a kernel, or that replaces modules of the model,
also compares these in its `wrap`, by the functions below. If results differ, or anything fails,
`fastest` leaves the acceleration out and logs why. No other module does so.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn

from loraqa.errors import in_a_line
from loraqa.lora.flat import FlatAdapter
from loraqa.model.attention import RowAttention
from loraqa.model.choose import (
    TOLERANCE,
    decoded,
    expected_decoding,
    relative_error,
    small_trees,
)
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory
from loraqa.model.rows import PaddedRowAttention
from loraqa.model.runner import (
    Acceleration,
    MakeRowAttention,
    MakeTreeAttention,
    Runner,
    TreeRunner,
    Use,
)
from loraqa.model.trees import PackedTreeAttention
from loraqa.prompt.batch import TreeBatch, TreeSpan
from loraqa.speed import OF_MODELS, chosen

logger = logging.getLogger("loraqa")

# Rounding in bf16 makes up to some hundredths of a gradient.
_GRADIENT_TOLERANCE = 0.1
# How far a kernel may be from the plain operation, relative: both round their results.
_KERNEL_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.008, torch.float16: 0.001}
# Three branches on two trunks, to compare kernels.
_SPANS = (TreeSpan(0, trunk=5, branches=(2, 3)), TreeSpan(10, trunk=3, branches=(1,)))
_NO_IDS = torch.zeros(1, _SPANS[-1].end, dtype=torch.long)
_BATCH = TreeBatch(_NO_IDS, _NO_IDS, _SPANS, torch.empty(0), torch.empty(0), torch.empty(0))


class UnusableError(Exception):
    """An acceleration cannot be used here. The message is a clause that says why."""


class DoesNotApplyError(UnusableError):
    """An acceleration has nothing to do in this model, or on this processor."""


class WrongResultError(UnusableError):
    """An acceleration computes something else than the plain algorithm."""


@explaining_lack_of_memory("while accelerations were tried on small trees", ADVICE_TO_LOADERS)
def fastest(
    plain: Runner, uses: Collection[Use], without: str | Iterable[str] = ()
) -> tuple[Runner, tuple[str, ...]]:
    """Return a runner with every acceleration that works, and the names of these accelerations.

    Args:
        plain: the runner that `choose_runner` chose. For training its model holds the adapter, of
            which no `FlatAdapter` may exist yet. For answering alone its weights may be packed;
            then the model can be neither trained nor saved.
        uses: what the runner is for.
        without: names of accelerations to leave out, or "all".

    Raises:
        InputError: a name in `without` is unknown.
        LackOfMemoryError: small trees do not fit into memory.
    """
    accelerations = chosen(OF_MODELS, without)
    if not accelerations:
        return plain, ()
    reference = _Reference(plain, frozenset(uses))
    runner, used = plain, []
    for name, module in accelerations.items():
        faster = _attempt(name, module, runner, reference)
        if faster is not None:
            runner = faster
            used.append(name)
    return runner, tuple(used)


def _attempt(name: str, module: str, runner: Runner, reference: "_Reference") -> Runner | None:
    """Return the accelerated runner, or None if the acceleration does not apply or work here."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            acceleration: Acceleration = import_module(module)
            if not acceleration.applies(runner, reference.uses):
                return None
            faster = acceleration.wrap(runner)
            reference.check(faster, runner)
            return faster
    except torch.OutOfMemoryError:
        raise
    except UnusableError as problem:
        reason = str(problem)
        # Nothing is amiss where it does not apply.
        level = logging.DEBUG if isinstance(problem, DoesNotApplyError) else logging.INFO
    # Compilers, kernels and models fail in any way.
    except Exception as problem:
        reason = f"it fails here ({type(problem).__name__}: {in_a_line(problem)})"
        level = logging.INFO
    logger.log(level, "The acceleration %s is not used, because %s.", name, reason)
    return None


class _Reference:
    """Results of the plain runner on small trees, computed before anything is replaced.

    Args:
        plain: the plain runner.
        uses: what the runner is for.
    """

    def __init__(self, plain: Runner, uses: frozenset[Use]) -> None:
        self.plain, self.uses = plain, uses
        with torch.no_grad():
            self._logits, _ = plain.answer_logits(small_trees(plain.model))

    def check(self, faster: Runner, before: Runner) -> None:
        """Compare the parts of a runner that an acceleration replaced.

        If no part was replaced, the acceleration replaced modules, and has compared them itself.

        Raises:
            WrongResultError: logits or gradients differ by more than rounding.
        """
        if not isinstance(faster, TreeRunner) or not isinstance(before, TreeRunner):
            return
        if faster.make_tree_attention is not before.make_tree_attention:
            self._check_logits(faster)
            if "training" in self.uses and _kernels_depend_on_the_model(faster.model.device):
                self._check_gradients(faster)
        if faster.make_row_attention is not before.make_row_attention:
            self._check_decoding(faster)
        if faster.make_gradients is not before.make_gradients:
            self._check_gradients(faster)

    @torch.no_grad()
    def _check_logits(self, faster: TreeRunner) -> None:
        logits, _ = faster.answer_logits(small_trees(faster.model))
        check_close(logits, self._logits, TOLERANCE[faster.model.dtype], "logits")

    def _check_decoding(self, faster: TreeRunner) -> None:
        trees = small_trees(faster.model)
        rows = sum(len(tree.branches) for tree in trees)
        expected = expected_decoding(self._logits.view(rows, -1, self._logits.shape[-1]))
        actual, tolerance = decoded(faster, trees), TOLERANCE[faster.model.dtype]
        check_close(torch.cat(actual), torch.cat(expected), tolerance, "logits in decoding")

    def _check_gradients(self, faster: TreeRunner) -> None:
        """Compare gradients twice: a CUDA graph is recorded the first time, then replayed."""
        expected = _gradients(self.plain, times=1).repeat(2)
        check_close(_gradients(faster, times=2), expected, _GRADIENT_TOLERANCE, "gradients")


def _kernels_depend_on_the_model(device: torch.device) -> bool:
    """Return whether `check_trees` may pass although the model's gradients are wrong.

    On a GPU kernels are compiled for each head size. On a CPU they are not, and gradients in the
    model would take half a second of every start.
    """
    return device.type != "cpu"


def _gradients(runner: Runner, times: int) -> Tensor:
    """Compute the gradient of the adapter on small trees, several times, one after another."""
    adapter = FlatAdapter(runner.model)
    compute, step = runner.gradients(adapter), [small_trees(runner.model)]
    found = []
    for _ in range(times):
        compute(step)()
        found.append(adapter.gradient.clone())
        adapter.gradient.zero_()
    return torch.cat(found)


def check_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Compare two tensors as a whole.

    Raises:
        WrongResultError: they differ by more than `tolerance`, relative to the size of `expected`.
    """
    error = relative_error(actual, expected)
    # A NaN is wrong too.
    if not error <= tolerance:
        raise WrongResultError(
            f"its {what} differ from the plain ones (relative error {error:.1g})"
        )


def check_each_element(actual: Tensor, expected: Tensor, what: str) -> None:
    """Compare two tensors element by element, with the tolerances of `torch.testing`.

    Raises:
        WrongResultError: an element differs by more.
    """
    try:
        torch.testing.assert_close(actual, expected)
    except AssertionError as error:
        raise WrongResultError(
            f"its {what} differ from the plain ones ({in_a_line(error)})"
        ) from None


def check_module(
    faster: nn.Module, plain: Callable[[Tensor], Tensor], x: Tensor, tolerance: float
) -> None:
    """Compare the output of a module for x, and its gradient if x wants one.

    Raises:
        WrongResultError: they differ.
    """
    actual, expected = faster(x), plain(x)
    check_close(actual, expected, tolerance, "outputs")
    if x.requires_grad:
        slope, expected_slope = (torch.autograd.grad(y.sum(), x)[0] for y in (actual, expected))
        check_close(slope, expected_slope, tolerance, "gradients")


def check_trees(make: MakeTreeAttention, device: torch.device, dtype: torch.dtype) -> None:
    """Compare attention over packed trees, and its gradient, with the plain one on random numbers.

    Raises:
        WrongResultError: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    shape = 3, 1, _BATCH.input_ids.shape[1], 4, 16
    numbers = torch.randn(shape, generator=generator, device="cpu").to(device, dtype)
    query, key, value = numbers.transpose(2, 3).requires_grad_().unbind()
    inputs = query, key[:, :2], value[:, :2]
    results = []
    for each in (make, PackedTreeAttention):
        attended = each(_BATCH, device).attend(0, *inputs, scaling=0.3)
        results.append((attended, *torch.autograd.grad(attended.sum(), (query, key, value))))
    for actual, expected in zip(*results, strict=True):
        check_close(actual, expected, TOLERANCE[dtype], "sums or gradients of attention")


@torch.no_grad()
def check_rows(make: MakeRowAttention, device: torch.device, dtype: torch.dtype) -> None:
    """Compare a kernel for rows with plain rows in fp32, on random numbers.

    Raises:
        WrongResultError: they differ.
    """
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), device="cpu")
    states, (query, key, value) = draw(2, 2, _SPANS[-1].end, 8), draw(3, 1, 4, 3, 8)
    numbers = [each.to(device, dtype) for each in (*states, query, key[:, :2], value[:, :2])]
    actual = _attended(make, numbers)
    expected = _attended(PaddedRowAttention, [each.float() for each in numbers])
    check_close(actual, expected, _KERNEL_TOLERANCE[dtype], "sums of attention")


def _attended(make: MakeRowAttention, numbers: list[Tensor]) -> Tensor:
    keys, values, query, key, value = numbers
    rows: RowAttention = make(_SPANS, {0: (keys, values)})
    rows.add_token()
    return rows.attend(0, query, key, value, scaling=0.3)
