"""Try each acceleration, compare it with the plain algorithm, and fall back where it differs.

This is the only place in the project where that is done.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from loraqa.errors import in_a_line
from loraqa.lora.flat import FlatAdapter
from loraqa.model.attention import Rows
from loraqa.model.choose import (
    TOLERANCE,
    decoded,
    expected_decoding,
    relative_error,
    small_trees,
)
from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory
from loraqa.model.rows import PaddedRows
from loraqa.model.runner import Acceleration, MakeRows, Runner, TreeRunner, Use
from loraqa.prompt.batch import TreeSpan
from loraqa.speed import OF_MODELS, accelerations

logger = logging.getLogger("loraqa")

# Rounding in bf16 makes up to some hundredths of a gradient.
_GRADIENT_TOLERANCE = 0.1
# How far a kernel may be from the plain operation, relative: both round their results.
KERNEL_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.008}
# Three rows on two trunks, to compare kernels for rows.
_SPANS = (TreeSpan(0, trunk=5, branches=(2, 3)), TreeSpan(10, trunk=3, branches=(1,)))


class UnusableError(Exception):
    """An acceleration cannot be used here. The message is a clause that says why."""


class WrongResultError(UnusableError):
    """An acceleration computes something else than the plain algorithm."""


@explaining_lack_of_memory("while accelerations were tried on small trees", ADVICE_TO_LOADERS)
def fastest(
    plain: Runner, uses: Collection[Use], without: Iterable[str] = ()
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
    runner, used = plain, []
    reference = _Reference(plain)
    for name, acceleration in accelerations(OF_MODELS, without):
        if acceleration.applies(runner, frozenset(uses)):
            faster = _attempt(name, acceleration, runner, reference, uses)
            if faster is not None:
                runner = faster
                used.append(name)
    return runner, tuple(used)


def _attempt(
    name: str,
    acceleration: Acceleration,
    runner: Runner,
    reference: "_Reference",
    uses: Collection[Use],
) -> Runner | None:
    """Return the accelerated runner; say why and return None if it does not work."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            faster = acceleration.wrap(runner)
            reference.check(faster, runner, uses)
            return faster
    except torch.OutOfMemoryError:
        raise
    except UnusableError as problem:
        reason = str(problem)
    # Compilers, kernels and models fail in any way.
    except Exception as problem:
        reason = f"it fails here ({type(problem).__name__}: {in_a_line(problem)})"
    logger.info("The acceleration %s is not used, because %s.", name, reason)
    return None


@dataclass(frozen=True)
class _Reference:
    """The results of the plain runner on small trees."""

    plain: Runner

    @cached_property
    @torch.no_grad()
    def logits(self) -> Tensor:
        """Return the logits that predict each answer, (answer tokens, vocabulary)."""
        return self.plain.answer_logits(small_trees(self.plain.model))[0]

    @cached_property
    def gradient(self) -> Tensor:
        """Return the gradient of the adapter."""
        return _gradients(self.plain, times=1)

    def check(self, faster: Runner, before: Runner, uses: Collection[Use]) -> None:
        """Compare the parts of a runner that an acceleration replaced.

        A runner that stayed the same has other modules in its model; whoever replaced these has
        compared them.

        Raises:
            WrongResultError: logits or gradients differ by more than rounding.
        """
        if not isinstance(faster, TreeRunner) or not isinstance(before, TreeRunner):
            return
        trees, tolerance = small_trees(faster.model), TOLERANCE[faster.model.dtype]
        if faster.make_trees is not before.make_trees:
            with torch.no_grad():
                check_close(faster.answer_logits(trees)[0], self.logits, tolerance, "logits")
        if "answering" in uses and faster.make_rows is not before.make_rows:
            rows = sum(len(tree.branches) for tree in trees)
            expected = expected_decoding(self.logits.view(rows, -1, self.logits.shape[-1]))
            actual = torch.cat(decoded(faster, trees))
            check_close(actual, torch.cat(expected), tolerance, "logits of answers being written")
        gradients_changed = (faster.make_trees, faster.make_gradients) != (
            before.make_trees,
            before.make_gradients,
        )
        if "training" in uses and gradients_changed:
            expected_gradient = self.gradient.repeat(2)
            actual = _gradients(faster, times=2)
            check_close(actual, expected_gradient, _GRADIENT_TOLERANCE, "gradients")


def _gradients(runner: Runner, times: int) -> Tensor:
    """Compute the gradient of the adapter on small trees, several times, one after another.

    A CUDA graph is recorded the first time and replayed the second.
    """
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
        raise WrongResultError(f"its {what} are {error:.1g} of their size off the plain ones")


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


@torch.no_grad()
def check_rows(make: MakeRows, device: torch.device, dtype: torch.dtype) -> None:
    """Compare a kernel for rows with plain rows in fp32, on random numbers.

    Raises:
        WrongResultError: they differ.
    """
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), device="cpu")
    states, (query, key, value) = draw(2, 2, _SPANS[-1].end, 8), draw(3, 1, 4, 3, 8)
    numbers = [each.to(device, dtype) for each in (*states, query, key[:, :2], value[:, :2])]
    actual = _attended(make, numbers)
    expected = _attended(PaddedRows, [each.float() for each in numbers])
    check_close(actual, expected, KERNEL_TOLERANCE[dtype], "sums over rows")


def _attended(make: MakeRows, numbers: list[Tensor]) -> Tensor:
    keys, values, query, key, value = numbers
    rows: Rows = make(_SPANS, {0: (keys, values)})
    rows.make_room()
    return rows.attend(0, query, key, value, scaling=0.3)
