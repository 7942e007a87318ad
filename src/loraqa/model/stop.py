"""Stopping a model's computation from another thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from torch import nn

from loraqa.errors import LoraqaError


class StoppedError(LoraqaError):
    """The computation was stopped."""


@contextmanager
def stopping(model: nn.Module, stop: Event) -> Iterator[None]:
    """Stop the model in this context as soon as `stop` is set.

    Every module looks at `stop` before it computes, so a long prompt is stopped within one product
    of matrices.

    Raises:
        StoppedError: `stop` was set.
    """

    def check(*_: object) -> None:
        if stop.is_set():
            raise StoppedError("The computation was stopped; start it again for its result.")

    hooks = [module.register_forward_pre_hook(check) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
