"""loraqa itself: training by its own loop, answering by its `Reader`."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from loraqa.train.graphs import choose_gradients
from loraqa.train.loss import Gradients, Launch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.base import ADAPTERS, MAX_LENGTH, Task, device, on_a_gpu, wait
from benchmarks.clock import measure, peak_mib
from benchmarks.flops import matrices, training_flops, tree_work
from loraqa.answer.decode import Greedy
from loraqa.answer.reader import Reader
from loraqa.finetune import finetune
from loraqa.lora.adapter import load_adapter
from loraqa.model.choose import choose_runner
from loraqa.model.load import load_base
from loraqa.model.runner import PaddedRunner, Runner
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.tree import Tree
from loraqa.train.loop import train
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, parse_settings


def trees(task: dict[str, Any], tokens_per_batch: int | None = None) -> dict[str, Any]:
    """What `loraqa train` does: every context computed once."""
    return _train(Task(**task), choose, tokens_per_batch)


def padded(task: dict[str, Any]) -> dict[str, Any]:
    """Our reference path: one row per question, for models that cannot take trees."""
    return _train(Task(**task), PaddedRunner, None)


def overhead(task: dict[str, Any], checkpoint_every: int) -> dict[str, Any]:
    """How much of a run is not forward and backward: plan, optimizer, logging, checkpoints.

    The loop's own forward and backward passes are timed within it. The one
    checkpoint, at the end, is counted as a share: one in `checkpoint_every` steps.
    """
    the = Task(**task)
    inside: list[float] = []
    ends: list[float] = []

    def timed(launch: Launch) -> Tensor:
        wait()
        start = time.perf_counter()
        loss = launch()
        wait()
        inside.append(time.perf_counter() - start)
        return loss

    def chosen(*arguments: Any) -> Gradients:
        gradients = choose_gradients(*arguments)
        return lambda step: partial(timed, gradients(step))

    def tell(_: Any) -> None:
        wait()
        ends.append(time.perf_counter())

    runner = load_runner(the, choose)
    with patch("loraqa.train.loop.choose_gradients", chosen):
        _fit(the, runner, the.trees(), None, tell)
    checkpoint = time.perf_counter() - ends[-1]
    steps = [end - start for start, end in pairwise(ends)]
    total = sum(steps) + checkpoint * len(steps) / checkpoint_every
    return {
        "seconds": steps,
        "checkpoint_seconds": checkpoint,
        "overhead": 1 - sum(inside[1:]) / total,
    }


def read(
    folder: str, adapter: str, data: str, precision: str, answer_tokens: int
) -> dict[str, Any]:
    """Greedy answers by `Reader`, as `loraqa evaluate` writes them.

    On a GPU for the second time: what the lengths of their rows need is compiled by then.
    """
    the = Task(folder, adapter, data, steps=0, precision=precision)
    reader = Reader.load(the.adapter_path, dtype=precision, device=str(device()))
    reader = replace(reader, max_answer_tokens=answer_tokens)
    passages = the.passages()
    if on_a_gpu():
        reader.read(passages, Greedy())
    start = time.perf_counter()
    answers = reader.read(passages, Greedy())
    seconds = time.perf_counter() - start
    return {
        "seconds": [seconds],
        "questions": len(answers),
        "answers": {answer.question_id: answer.text for answer, *_ in answers},
        "peak_mib": peak_mib(),
    }


def epoch(folder: str, train: str) -> dict[str, Any]:
    """An epoch of `loraqa train` with its defaults: how long its steps take, all in all.

    On a GPU they include compiling attention for lengths of rows as these come up, but not
    compiling the layers, which happens before.
    """
    settings = parse_settings(
        {
            "model": {"source": f"{folder}/model"},
            "data": {"train": f"{folder}/{train}"},
            "optimisation": {"epochs": 1},
        }
    )
    with tempfile.TemporaryDirectory() as out, patch.dict(os.environ, LORAQA_CACHE=out):
        result = finetune(settings, Path(out) / "run")
        facts = json.loads(RunDirectory(result.run).data_file.read_text())
    return {
        "seconds": [result.training_seconds],
        "questions": facts["train"]["encoding"]["examples"],
        "steps": result.steps,
        "peak_mib": peak_mib(),
    }


def choose(model: PreTrainedModel) -> Runner:
    """As `loraqa train` does."""
    return choose_runner(model, MAX_LENGTH, training=True)


def load_runner(the: Task, chosen: Callable[[PreTrainedModel], Runner]) -> Runner:
    """The model with its adapter, ready to train, and how it computes."""
    model, _ = load_base(the.model_path, dtype=the.precision, device=str(device()))
    load_adapter(model, the.adapter_path)
    return chosen(model)


def _train(
    the: Task, chosen: Callable[[PreTrainedModel], Runner], tokens_per_batch: int | None
) -> dict[str, Any]:
    runner = load_runner(the, chosen)
    learned = the.trees()

    def fit() -> float:
        losses: list[float] = []
        _fit(the, runner, learned, tokens_per_batch, lambda record: losses.append(record["loss"]))
        return losses[0]

    result = measure(runner.model, fit, the.reference, the.precision)
    (step,) = _plan(the, runner, learned, tokens_per_batch).epoch(0)
    return {
        **result,
        # The clock's count misses what CUDA graphs compute.
        "tokens": sum(map(runner.size, step)),
        "questions": sum(len(tree.branches) for tree in learned),
        "flops": _flops(the, runner.model, learned),
        "flops_separate": _flops(the, runner.model, _apart(learned)),
        "tokens_separate": sum(tree.separate_length for tree in learned),
    }


def _fit(
    the: Task,
    runner: Runner,
    learned: list[Tree],
    tokens_per_batch: int | None,
    report: Callable[[Any], None],
) -> None:
    """Run the loop; an epoch is one optimizer step on all trees."""
    plan = _plan(the, runner, learned, tokens_per_batch)
    settings = _settings(the, plan.questions_per_step)
    with tempfile.TemporaryDirectory() as run:
        train(runner, plan, settings, RunDirectory(Path(run)), report=report)


def _plan(
    the: Task, runner: Runner, learned: list[Tree], tokens_per_batch: int | None
) -> BatchPlan:
    questions = sum(len(tree.branches) for tree in learned)
    settings = _settings(the, questions)
    budget = tokens_per_batch or settings.optimisation.tokens_per_batch
    return BatchPlan(learned, questions, budget, settings.seed, runner.size)


def _settings(the: Task, questions: int) -> RunSettings:
    """The defaults, but for those that hold for everybody."""
    steps = 1 + the.steps
    return parse_settings(
        {
            "model": {"source": str(the.model_path), "dtype": the.precision},
            "data": {"train": the.data},
            "optimisation": {
                "questions_per_step": questions,
                "epochs": steps,
                "learning_rate": 1e-4,
                "clip_norm": None,
            },
        }
    )


def _flops(the: Task, model: PreTrainedModel, learned: list[Tree]) -> int:
    lora = ADAPTERS[the.adapter]
    adapted = matrices(model.config) if the.adapter == "all-linear" else ["attn.c_attn"]
    return training_flops(model.config, lora.rank, list(adapted), tree_work(learned))


def _apart(learned: list[Tree]) -> list[Tree]:
    """Every question with a context of its own."""
    return [replace(tree, branches=(branch,)) for tree in learned for branch in tree.branches]
