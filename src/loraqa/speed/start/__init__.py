"""Accelerations of the start of a run: of reading and encoding its training data."""

from collections.abc import Iterable
from importlib import import_module

from loraqa.speed import OF_PREPARATION, chosen
from loraqa.train.data import Preparation


def accelerated_preparation(without: str | Iterable[str] = ()) -> Preparation:
    """Return a preparation of training data with every acceleration but those left out.

    Raises:
        InputError: a name in `without` is unknown.
    """
    preparation = Preparation()
    for module in chosen(OF_PREPARATION, without).values():
        preparation = import_module(module).wrap(preparation)
    return preparation
