"""Accelerations of the plain algorithm, in the order in which they are tried.

An acceleration computes the same as the plain algorithm, faster. `trial.fastest` tries each one
that applies, compares its results with the plain ones, and leaves it out where they differ. No core
room imports this room; without any acceleration everything works, only slower. To delete an
acceleration, delete its file and its line here.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from loraqa.errors import InputError

OF_MODELS = {
    "kept-memory": "loraqa.speed.cpu.memory",
    "fused-gelu": "loraqa.speed.fused_gelu",
    "compiled-gelu": "loraqa.speed.cpu.gelu",
    "attention-by-products": "loraqa.speed.cpu.products",
    "triton-trees": "loraqa.speed.gpu.trees",
    "compiled-rows": "loraqa.speed.cpu.rows",
    "varlen-rows": "loraqa.speed.gpu.rows",
    "grouped-rows": "loraqa.speed.grouped_rows",
    "cuda-graphs": "loraqa.speed.gpu.graphs",
    "prepacked-weights": "loraqa.speed.cpu.prepacked",
}
"""Name and module of each acceleration of a model; the module is an `Acceleration`."""

OF_PREPARATION = {
    "word-cache": "loraqa.speed.start.words",
    "encoded-cache": "loraqa.speed.start.encoded",
    "preparing-process": "loraqa.speed.start.process",
}
"""Name and module of each acceleration of reading and encoding training data."""

ALL = "all"


def accelerations(table: dict[str, str], without: Iterable[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the name and module of each acceleration of a table but those left out.

    Raises:
        InputError: a name in `without` is neither an acceleration nor "all".
    """
    left_out = frozenset(without)
    check_names(left_out)
    for name, module in table.items():
        if not left_out & {name, ALL}:
            yield name, import_module(module)


def check_names(without: Iterable[str]) -> None:
    """Raise `InputError` where a name is neither an acceleration nor "all"."""
    known = [*OF_MODELS, *OF_PREPARATION]
    for name in without:
        if name not in (*known, ALL):
            raise InputError(
                f"There is no acceleration {name!r}; give `{ALL}`, or one of {', '.join(known)}."
            )
