"""The updates ΔW = s BA of a model, and changes of them that say what each one is for."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from loraqa.analysis.low_rank import truncated
from loraqa.analysis.updates import Update
from loraqa.lora.dora import check_plain_updates
from loraqa.lora.layer import lora_layers
from loraqa.lora.pissa import check_whole_weights


def updates(model: nn.Module) -> list[Update]:
    """Return every update in the model, in the model's order; its matrices are those of the model.

    Raises `InputError` if PiSSA has split weights of the model, or if it was trained with DoRA.
    """
    check_whole_weights(model)
    check_plain_updates(model)
    return [
        Update(
            f"{name}[{part.name}]" if part.name else name,
            a.detach(),
            b.detach(),
            layer.scaling,
            layer.frozen_weight[part.slice].detach(),
        )
        for name, layer in lora_layers(model).items()
        for part, a, b in layer.blocks()
    ]


@contextmanager
def restoring(changed: Iterable[Update]) -> Iterator[None]:
    """Give A and B back to the model's updates at the end, to the bit."""
    saved = [(matrix, matrix.clone()) for update in changed for matrix in (update.a, update.b)]
    try:
        yield
    finally:
        for matrix, before in saved:
            matrix.copy_(before)


def scale(changed: Iterable[Update], factor: float) -> None:
    """Multiply updates of a model by a factor; 0 switches them off."""
    for update in changed:
        update.b.mul_(factor)


def cut(changed: Iterable[Update], rank: int) -> None:
    """Replace updates of a model by their best approximations of this rank."""
    for update in changed:
        b, a = truncated(update.b, update.a, rank)
        update.b.copy_(b)
        update.a.copy_(a)
