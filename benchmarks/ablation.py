"""What each acceleration gains: loraqa without it, in training and in answering.

An acceleration that needs another one is left out with it. Where a kernel for rows is left out,
grouped-rows takes its place.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache

import torch

from benchmarks import base
from benchmarks.base import ADAPTERS, MAX_ANSWER_TOKENS, MAX_LENGTH, Task, device
from benchmarks.harness import Conclusion, Groups, Side, Suite, best
from benchmarks.suites import Scale, reading
from loraqa.lora.adapt import adapt
from loraqa.model.choose import choose_runner
from loraqa.model.runner import Use
from loraqa.speed import ALL
from loraqa.speed.trial import fastest

NOTHING = "nothing"
TREES = "trees: padded rows instead"

# The gain of one acceleration can be as small as the noise of one step.
_STEPS = 4
# The sizes of small models; kernels see heads of 64 numbers, as in the real ones.
_SMALL = {"gpt2": (2, 128, 2), "llama": (2, 192, 3, 1, 256)}


def ablation(
    name: str, family: str, folder: str, texts: str, scale: Scale, precision: str
) -> Suite:
    """Optimizer steps with all accelerations, without each, without all, and without trees.

    Args:
        name: name of the suite.
        family: "gpt2" or "llama".
        folder: folder of the model and its adapter.
        texts: folder of the passages.
        scale: how much is measured.
        precision: the machine's fastest dtype.
    """
    data, reference = f"{texts}/ablation.json", f"{folder}/{name}.safetensors"
    task = asdict(Task(folder, "all-linear", data, _STEPS, precision, reference))
    sides = {
        left_out: Side("ours.trees", "a step", {"task": task, "without": without})
        for left_out, without in _left_out("training", family, precision).items()
    }
    return Suite(
        name,
        {"ablation.json": ("sample", {"split": "train", "questions": scale.questions})},
        {**sides, TREES: Side("ours.padded", "a step", {"task": task})},
        scale.rounds,
        _conclude,
    )


def answering(folder: str, scale: Scale, precision: str) -> Suite:
    """Greedy answers of GPT-2 with all accelerations, without each, and without all."""
    options = reading(folder, "asked.json", precision, MAX_ANSWER_TOKENS)
    return Suite(
        "ablation-answering",
        {"asked.json": ("sample", {"split": "dev", "questions": scale.answered})},
        {
            left_out: Side("ours.read", "answers", {**options, "without": without})
            for left_out, without in _left_out("answering", "gpt2", precision).items()
        },
        scale.rounds,
        _conclude,
    )


@cache
def used_here(use: Use, family: str, precision: str) -> tuple[str, ...]:
    """Return the names of the accelerations that work on this machine, tried on a small model."""
    made = base.random_model(family, _SMALL[family])
    model = made.to(device(), getattr(torch, precision)).eval()
    adapt(model, ADAPTERS["all-linear"])
    return fastest(choose_runner(model, MAX_LENGTH), [use])[1]


def _left_out(use: Use, family: str, precision: str) -> Mapping[str, list[str]]:
    """Return the accelerations that each side leaves out, by the side's name."""
    names = used_here(use, family, precision)
    return {NOTHING: [], **{name: [name] for name in names}, ALL: [ALL]}


def _conclude(groups: Groups) -> Conclusion:
    """Return how many times as long each side takes as the side that leaves out nothing."""
    seconds = {name: best(group).median_seconds for name, group in groups.items()}
    all_used = seconds.pop(NOTHING)
    return Conclusion({f"gain of {name}": took / all_used for name, took in seconds.items()})
