"""Stopping a computation from another thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

from torch import nn

from loraqa.errors import LoraqaError

_stop: ContextVar[Event | None] = ContextVar("stop", default=None)


class ComputationStoppedError(LoraqaError):
    """Another thread stopped the computation."""


@contextmanager
def stopping(model: nn.Module, stop: Event) -> Iterator[None]:
    """Stop the computation in this context soon after `stop` is set.

    Every module of the model looks at `stop` before it computes, so a long prompt is stopped within
    one product of matrices. Long loops without the model call `check_stop`.

    Raises:
        ComputationStoppedError: `stop` was set.
    """
    before = _stop.set(stop)
    hooks = [module.register_forward_pre_hook(_check) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _stop.reset(before)


def check_stop() -> None:
    """Raise `ComputationStoppedError` if the computation is to stop (see `stopping`)."""
    stop = _stop.get()
    if stop and stop.is_set():
        raise ComputationStoppedError("The computation was stopped; start it again for its result.")


def _check(*_: object) -> None:
    check_stop()
