"""Accelerations of the plain algorithm, in the order in which they are tried.

An acceleration computes the same as the plain algorithm, faster. No package before this one
imports an acceleration; without any of them everything works, only slower. To delete an
acceleration, delete its file and its line here (for `preparing-process` also its call in
`cli/train.py`, for `branches-alone` also `kept.py` and its call in `finetuning/ready.py`).
"""

from collections.abc import Iterable

from loraqa.errors import InputError, did_you_mean, quote

OF_MODELS = {
    "fused-gelu": "loraqa.speed.fused_gelu",
    "compiled-gelu": "loraqa.speed.cpu.gelu",
    "compiled-norms": "loraqa.speed.cpu.norm",
    "compiled-gates": "loraqa.speed.cpu.gate",
    "compiled-rotary": "loraqa.speed.cpu.rotary",
    "shared-inputs": "loraqa.speed.cpu.shared",
    "compiled-trees": "loraqa.speed.cpu.trees",
    "attention-by-products": "loraqa.speed.cpu.products",
    "triton-trees": "loraqa.speed.gpu.trees",
    "compiled-rows": "loraqa.speed.cpu.rows",
    "varlen-rows": "loraqa.speed.gpu.rows",
    "grouped-rows": "loraqa.speed.grouped_rows",
    "cuda-graphs": "loraqa.speed.gpu.graphs",
    "branches-alone": "loraqa.speed.branches",
    "prepacked-weights": "loraqa.speed.cpu.prepacked",
}
"""Name and module of each acceleration of a model. The module is an `Acceleration`."""

OF_PREPARATION = {
    "word-cache": "loraqa.speed.start.words",
    "encoded-cache": "loraqa.speed.start.encoded",
}
"""Name and module of each acceleration of preparing data. The module has `wrap(preparation)`."""

OF_COMMANDS = {"preparing-process": "loraqa.speed.start.process"}
"""Name and module of the acceleration that the command line itself starts."""

ALL = "all"


def chosen(table: dict[str, str], without: str | Iterable[str] = ()) -> dict[str, str]:
    """Return a table without the accelerations that are left out.

    Args:
        table: `OF_MODELS`, `OF_PREPARATION` or `OF_COMMANDS`.
        without: names, or texts of several names with commas between; "all" is every name.

    Raises:
        InputError: a name in `without` is neither an acceleration nor "all".
    """
    texts = [without] if isinstance(without, str) else without
    names = [name.strip() for text in texts for name in text.split(",")]
    left_out = frozenset(filter(None, names))
    known = [*OF_MODELS, *OF_PREPARATION, *OF_COMMANDS]
    for name in left_out - {*known, ALL}:
        raise InputError(
            f"There is no acceleration {quote(name)}{did_you_mean(name, known)}; give `{ALL}`, or "
            f"one of {', '.join(known)}."
        )
    return {} if ALL in left_out else {n: m for n, m in table.items() if n not in left_out}
