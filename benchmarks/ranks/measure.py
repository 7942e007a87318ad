"""Measurements behind the model: all-reduces, steps of the real training loop, and planning."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.base import prepare
from benchmarks.ranks.steps import Size, idle, sizes_in, step_of, tokens_of_ranks
from benchmarks.scaling import SHAPES
from benchmarks.text import sample
from loraqa.distributed.launch import LOOPBACK
from loraqa.prompt.shares import shares
from loraqa.squad import write_official
from loraqa.train.run import RunDirectory

QUESTIONS_PER_RANK = 32
"""As in the default settings of one process."""
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# The first steps of a process are slower: memory is allocated, kernels are chosen.
_WARM_UP = 2
_SEEDS = range(3)
_ARGUMENTS = [
    "optimisation.learning_rate=1e-4",
    # More than the data have, so that a step takes all.
    "optimisation.questions_per_step=1000000",
    "data.negatives=0.0",
    "data.held_out=0",
]


def all_reduces(ranks: int) -> dict[str, float]:
    """Return the seconds of an all-reduce on this machine, by bytes (as text)."""
    done = _torchrun(ranks, "benchmarks.ranks.all_reduce")
    return dict(json.loads(done.splitlines()[-1]))


def steps(
    questions: Sequence[int],
    ranks: Sequence[int],
    count: int,
    shape: Sequence[int] = SHAPES["gpt2"],
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train on the same questions in every step, with `torchrun`, and return the times.

    Args:
        questions: numbers of questions in a step, of all ranks together.
        ranks: numbers of ranks.
        count: how many steps are timed.
        shape: layers, width and heads of a GPT-2 with random weights.
        report: called with a line before each training.

    Returns:
        `ranks`, `questions`, `tokens` of each rank, and `seconds` of each step.
    """
    measured = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(str(folder), "gpt2", shape)
        for asked in questions:
            passages = sample("train", asked)
            data, trees = folder / f"{asked}.json", sizes_in(passages)
            write_official(data, passages, "1.1")
            for processes in ranks:
                report(f"{asked} questions a step, ranks: {processes}")
                run = RunDirectory(folder / f"run-{asked}-{processes}")
                _train(folder / "model", data, run, processes, count)
                measured.append(_measured(run, trees, processes))
    return measured


def _train(model: Path, data: Path, run: RunDirectory, ranks: int, count: int) -> None:
    """Run a training whose every epoch is one step."""
    settings = [*_ARGUMENTS, f"optimisation.epochs={_WARM_UP + count}"]
    words = ["--model", str(model), "--train", str(data), "--out", str(run.path)]
    _torchrun(ranks, "loraqa", "train", *words, *(w for s in settings for w in ("--set", s)))


def _measured(run: RunDirectory, trees: Sequence[Size], ranks: int) -> dict[str, Any]:
    records = [record for record in run.metrics() if record["kind"] == "train"]
    return {
        "ranks": ranks,
        "questions": sum(tree.questions for tree in trees),
        "tokens": tokens_of_ranks(trees, ranks),
        "adapter_bytes": (run.adapter / "adapter_model.safetensors").stat().st_size,
        "seconds": [record["seconds"] for record in records[_WARM_UP:]],
    }


def planning(trees: Sequence[Size], ranks: Sequence[int] = RANKS) -> list[dict[str, float]]:
    """Share steps of 32 questions a rank, three for each number of ranks.

    Returns:
        `ranks`, the number of `trees` in the first step, the largest `idle` of the three, and the
        fewest `seconds` that a rank needs to share one.
    """
    found = []
    for processes in ranks:
        drawn = [step_of(trees, QUESTIONS_PER_RANK * processes, seed) for seed in _SEEDS]
        found.append(
            {
                "ranks": processes,
                "trees": len(drawn[0]),
                "idle": max(idle(tokens_of_ranks(step, processes)) for step in drawn),
                "seconds": min(
                    _seconds_to_share([tree.tokens for tree in step], processes) for step in drawn
                ),
            }
        )
    return found


def _seconds_to_share(tokens: Sequence[int], ranks: int) -> float:
    start = time.perf_counter()
    shares(tokens, ranks)
    return time.perf_counter() - start


def _torchrun(ranks: int, *words: str) -> str:
    """Run a module in several processes of one thread each; return what they print."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    # As `loraqa train` does on one machine.
    loopback = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    environment: Mapping[str, str] = os.environ | loopback
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", *words],
        env=dict(environment),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout
