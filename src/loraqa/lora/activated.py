"""Activated LoRA (Greenewald et al., 2025, arXiv:2504.12397): the update acts from a place on.

The tokens before it are computed by the frozen base alone. So their keys and values are the base's,
whatever was learned. PEFT looks for the place, the last occurrence of certain token ids, which it
calls the invocation; here the caller knows which tokens are to be acted on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from loraqa.errors import InputError
from loraqa.lora.layer import LoraLinear, affine, as_matrix, lora_layers

NO_TOKENS = torch.empty(0, dtype=torch.bool)
"""For `acting_on`: the base computes alone, without any work for updates."""

# The tokens that updates act on, as booleans; None is all.
_acted_on: ContextVar[Tensor | None] = ContextVar("acted_on", default=None)


@contextmanager
def acting_on(tokens: Tensor) -> Iterator[None]:
    """Let the updates of `ActivatedLinear`s act only on some of the tokens that the model computes.

    Args:
        tokens: booleans in the shape of the model's input ids, on its device; or `NO_TOKENS`.
    """
    before = _acted_on.set(tokens if tokens is NO_TOKENS else tokens.flatten())
    try:
        yield
    finally:
        _acted_on.reset(before)


def acting_mask(x: Tensor) -> Tensor | None:
    """Return 1 for each token of x (n, in) that updates act on, else 0, (n, 1); None is 1 for all.

    Raises:
        InputError: x has not all tokens that the model computes.
    """
    tokens = _acted_on.get()
    if tokens is None:
        return None
    if len(tokens) != len(x):
        raise InputError(
            f"An adapted layer with {x.shape[1]:,} inputs gets {len(x):,} tokens where the model "
            f"gets {len(tokens):,}, so an activated LoRA cannot tell which to act on; leave it out "
            "of lora.target_modules, or train without lora.activated."
        )
    return tokens[:, None].to(x.dtype)


class ActivatedLinear(LoraLinear):
    """A `LoraLinear` whose update acts on the tokens that `acting_on` names; without it, on all.

    `invocation` are the ids with which the part of a text begins that it was trained to act on.
    """

    def __init__(self, *args: Any, invocation: Sequence[int], **options: Any) -> None:
        super().__init__(*args, **options)
        if not invocation:
            raise InputError("An activated LoRA needs the ids of its invocation; give them.")
        self.invocation = tuple(invocation)

    @property
    def acts_everywhere(self) -> bool:
        """Whether the update acts on all tokens now."""
        return _acted_on.get() is None

    def _adapted(self, x: Tensor) -> Tensor:
        if _acted_on.get() is NO_TOKENS:
            return affine(x, as_matrix(self.base, self.base.weight), self.base.bias)
        return super()._adapted(x)

    def _mask(self, x: Tensor) -> Tensor | None:
        mask, acts = super()._mask(x), acting_mask(x)
        return mask if acts is None else acts if mask is None else acts * mask


def invocation_of(model: nn.Module) -> tuple[int, ...]:
    """Return the invocation of the model's activated LoRA; nothing if it has none."""
    return next((layer.invocation for layer in lora_layers(model).values()), ())


def check_mergeable(model: nn.Module) -> None:
    """Raise `InputError` if the model's LoRA is activated."""
    if invocation_of(model):
        raise InputError(
            "An activated LoRA (lora.activated) leaves contexts to the base's weights, so it "
            "cannot be merged into them; export it with --format peft, or train without "
            "lora.activated."
        )
