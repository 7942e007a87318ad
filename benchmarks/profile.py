"""Show where an optimizer step of loraqa spends its time: `python -m benchmarks.profile`.

Profiles four steps with torch's profiler, after four warm-up steps that allocate memory and compile
kernels: GPT-2's 124M shape, or with `llama` SmolLM2's, LoRA r = 16 on all linear layers, 32
questions.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config

from benchmarks import base, ours, text
from benchmarks.base import ADAPTERS, SMOLLM2, Task, on_a_gpu
from benchmarks.machine import fastest_precision
from benchmarks.suites import FULL
from loraqa.model.loss import accumulate
from loraqa.report.tables import Column, Table

_STEPS = 4
_SIZES = {"gpt2": (12, 768, 12), "llama": SMOLLM2}
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")
_BATCHED = ("aten::bmm", "aten::baddbmm")
_FROZEN, _LOW_RANK, _HEAD = "products with frozen matrices", "LoRA's products", "head and loss"
_ATTENTION, _ACTIVATION = "attention", "GELU or SwiGLU"
_REST = "sums, copies, Python"
# Kinds by a part of the operator's name; the first match counts.
_KINDS = {
    "log_softmax": _HEAD,
    "nll_loss": _HEAD,
    "softmax": _ATTENTION,
    "_Attend": _ATTENTION,
    "elu": _ACTIVATION,
    "_Gate": _ACTIVATION,
    "norm": "norms",
    "_Norm": "norms",
    "_Rotate": "rotary embedding",
}


def main() -> None:
    """Profile a few steps and print the share of each kind of operation."""
    if on_a_gpu():
        sys.exit("This profiles only the CPU; put CUDA_VISIBLE_DEVICES= before the command.")
    family = sys.argv[1] if len(sys.argv) > 1 else "gpt2"
    with tempfile.TemporaryDirectory() as folder:
        base.prepare(folder, family, _SIZES[family])
        sample = ("sample", {"split": "train", "questions": FULL.questions})
        text.write(folder, {"train.json": sample})
        task = Task(folder, "all-linear", "train.json", _STEPS, fastest_precision())
        runner = ours.choose(ours.load(task))
        step = [task.trees()]
    for _ in range(_STEPS):
        accumulate(runner, step)
    times: Counter[str] = Counter()
    # One profiler per step, because a profiler over several steps disturbs their memory.
    for _ in range(_STEPS):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            accumulate(runner, step)
        for operator in profiler.key_averages(group_by_input_shape=True):
            times[_kind(operator.key, operator.input_shapes)] += operator.self_cpu_time_total
    rows = tuple((kind, 100 * time / times.total()) for kind, time in times.most_common())
    Console().print(Table("Time of a step", (Column("for"), Column("%", ".1f")), rows).to_rich())


def _kind(operator: str, shapes: Sequence[Sequence[int]]) -> str:
    if operator in _BATCHED:
        return _ATTENTION
    if operator in _PRODUCTS:
        return _kind_of_product([size for shape in shapes for size in shape])
    return next((kind for part, kind in _KINDS.items() if part in operator), _REST)


def _kind_of_product(sizes: Sequence[int]) -> str:
    if max(sizes) == GPT2Config().vocab_size:
        return _HEAD
    # Up to three A lie below one another, and the product that also adds the bias has rank + 1.
    rank = ADAPTERS["all-linear"].rank
    return _LOW_RANK if min(sizes) in (rank, rank + 1, 2 * rank, 3 * rank) else _FROZEN


if __name__ == "__main__":
    main()
