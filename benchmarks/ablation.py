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
# Layers, width and heads of a small GPT-2; kernels see heads of 64 numbers, as in the real one.
_SMALL = (2, 128, 2)


def ablation(folder: str, scale: Scale, precision: str) -> Suite:
    """Optimizer steps with all accelerations, without each, without all, and without trees."""
    name = "ablation"
    reference = f"{folder}/{name}.safetensors"
    task = asdict(Task(folder, "all-linear", "ablation.json", _STEPS, precision, reference))
    sides = {
        left_out: Side("ours.trees", "a step", {"task": task, "without": without})
        for left_out, without in _left_out("training", precision).items()
    }
    return Suite(
        name,
        {"ablation.json": ("sample", {"split": "train", "questions": scale.questions})},
        {**sides, TREES: Side("ours.padded", "a step", {"task": task})},
        scale.rounds,
        _conclude,
    )


def answering(folder: str, scale: Scale, precision: str) -> Suite:
    """Greedy answers with all accelerations, without each, and without all."""
    options = reading(folder, "asked.json", precision, MAX_ANSWER_TOKENS)
    return Suite(
        "ablation-answering",
        {"asked.json": ("sample", {"split": "dev", "questions": scale.answered})},
        {
            left_out: Side("ours.read", "answers", {**options, "without": without})
            for left_out, without in _left_out("answering", precision).items()
        },
        scale.rounds,
        _conclude,
    )


@cache
def used_here(use: Use, precision: str) -> tuple[str, ...]:
    """Return the names of the accelerations that work on this machine, tried on a small GPT-2."""
    model = base.gpt2(*_SMALL).to(device(), getattr(torch, precision)).eval()
    adapt(model, ADAPTERS["all-linear"])
    return fastest(choose_runner(model, MAX_LENGTH), [use])[1]


def _left_out(use: Use, precision: str) -> Mapping[str, list[str]]:
    """Return the accelerations that each side leaves out, by the side's name."""
    return {NOTHING: [], **{name: [name] for name in used_here(use, precision)}, ALL: [ALL]}


def _conclude(groups: Groups) -> Conclusion:
    """Return how many times as long each side takes as the side that leaves out nothing."""
    seconds = {name: best(group).median_seconds for name, group in groups.items()}
    all_used = seconds.pop(NOTHING)
    return Conclusion({f"gain of {name}": took / all_used for name, took in seconds.items()})
