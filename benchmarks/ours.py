"""loraqa as a contender: training with its loop, answering with its `Reader`."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, pairwise, repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.base import ADAPTERS, MAX_LENGTH, Task, device, on_a_gpu, wait
from benchmarks.clock import measure, peak_mib
from benchmarks.flops import matrices, training_flops, tree_work
from loraqa.answer.decode import Greedy
from loraqa.finetuning import finetune
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import load_adapter
from loraqa.lora.flat import FlatAdapter
from loraqa.model.choose import choose_runner
from loraqa.model.load import load_model
from loraqa.model.loss import Gradients, Launch
from loraqa.model.runner import PaddedRunner, Runner, TreeRunner
from loraqa.prompt.invocation import invocation_of_questions
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.tree import TokenIds, Tree
from loraqa.reader import Reader
from loraqa.speed.branches import BranchGradients, Trunks
from loraqa.speed.kept import KeptTrunks
from loraqa.speed.trial import fastest
from loraqa.train.loop import train
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, parse_settings

# Bytes; enough for all trunks of a step.
_ROOM = 2**34


def trees(
    task: dict[str, Any], tokens_per_batch: int | None = None, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Train as `loraqa train` does: every context is computed once.

    Args:
        task: a `Task`.
        tokens_per_batch: the most tokens in memory at once; None is loraqa's default.
        without: names of accelerations to leave out, or "all".
    """
    spec = Task(**task)
    return _train(spec, choose(load(spec), without), tokens_per_batch)


def padded(task: dict[str, Any]) -> dict[str, Any]:
    """Train with padded batches, one row per question, as for models without tree support."""
    spec = Task(**task)
    runner, _ = fastest(PaddedRunner(load(spec)), ["training"])
    return _train(spec, runner, None)


def activated(task: dict[str, Any], kept: bool) -> dict[str, Any]:
    """Train an activated LoRA as `loraqa train` does.

    Args:
        task: a `Task`.
        kept: whether the trunks of all steps but the first are kept, as in a later epoch. In the
            first epoch all are computed and written.
    """
    spec = Task(**task)
    model = load_model(spec.model_path, dtype=spec.precision, device=str(device()))
    settings = ADAPTERS[spec.adapter].model_copy(update={"activated": True})
    adapt(model, settings, invocation=invocation_of_questions(spec.encoder()))
    runner = choose(model)
    if not isinstance(runner, TreeRunner) or not isinstance(runner.make_gradients, BranchGradients):
        raise RuntimeError("branches-alone is not used here, so this suite says nothing")
    trunks = _Epoch(runner.make_gradients.trunks, kept)
    runner = replace(runner, make_gradients=BranchGradients(trunks))
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, LORAQA_CACHE=cache):
        result = _timed(spec, runner, spec.trees(), None)
        trunks.finish()
    return result


class _Epoch:
    """`Trunks` that are kept; unless `kept`, they are not found again, each under its own base."""

    def __init__(self, compute: Trunks, kept: bool) -> None:
        names = repeat("base") if kept else map(str, count())
        self._keepers = (KeptTrunks(compute, name, _ROOM) for name in names)
        self.finish: Callable[[], None] = lambda: None

    def __call__(self, wanted: Sequence[TokenIds]) -> list[Tensor]:
        """See `Trunks`."""
        self.finish()
        keeper = next(self._keepers)
        self.finish = keeper.finish
        return keeper(wanted)


def overhead(task: dict[str, Any], checkpoint_every: int) -> dict[str, Any]:
    """Measure the share of a run outside forward and backward: plan, optimizer, logs, checkpoints.

    The forward and backward passes of the training loop are timed inside it. Of the one checkpoint,
    at the end, each step counts the share 1 / `checkpoint_every`.
    """
    spec = Task(**task)
    inside: list[float] = []
    ends: list[float] = []

    def timed(launch: Launch) -> Tensor:
        wait()
        start = time.perf_counter()
        loss = launch()
        wait()
        inside.append(time.perf_counter() - start)
        return loss

    def timed_gradients(_: Runner, adapter: FlatAdapter) -> Gradients:
        gradients = runner.gradients(adapter)
        return lambda step, targets=None: partial(timed, gradients(step, targets))

    def tell(_: Any) -> None:
        wait()
        ends.append(time.perf_counter())

    runner = choose(load(spec))
    assert isinstance(runner, TreeRunner)
    _fit(spec, replace(runner, make_gradients=timed_gradients), spec.trees(), None, tell)
    checkpoint = time.perf_counter() - ends[-1]
    steps = [end - start for start, end in pairwise(ends)]
    total = sum(steps) + checkpoint * len(steps) / checkpoint_every
    return {
        "seconds": steps,
        "checkpoint_seconds": checkpoint,
        "overhead": 1 - sum(inside[1:]) / total,
    }


def read(
    folder: str,
    adapter: str,
    data: str,
    precision: str,
    answer_tokens: int,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Time greedy answers by `Reader`, as `loraqa evaluate` gives them.

    On a GPU the second pass is timed; the first compiles what the rows' lengths need.

    Args:
        folder, adapter, data, precision: as for `Task`.
        answer_tokens: the longest answer in tokens.
        without: names of accelerations to leave out, or "all".
    """
    spec = Task(folder, adapter, data, steps=0, precision=precision)
    reader = Reader.load(spec.adapter_path, dtype=precision, device=str(device()), without=without)
    reader = replace(reader, max_answer_tokens=answer_tokens)
    passages = spec.passages()
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
    """Time all steps of an epoch of `loraqa train` with its default settings.

    On a GPU this includes compiling attention for new lengths of rows, but not compiling the
    layers, which happens before.
    """
    settings = parse_settings(
        {
            "model": {"source": f"{folder}/model"},
            # Every question once, as the others have them.
            "data": {"train": f"{folder}/{train}", "negatives": 0.0, "held_out": 0},
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


def load(spec: Task) -> PreTrainedModel:
    """Load the model with its adapter, ready to train."""
    model = load_model(
        spec.model_path,
        dtype=spec.precision,
        device=str(device()),
        quantisation=spec.quantisation,
    )
    load_adapter(model, spec.adapter_path)
    return model


def choose(model: PreTrainedModel, without: Sequence[str] = ()) -> Runner:
    """Choose the runner as `loraqa train` does; some accelerations may be left out."""
    plain = choose_runner(model, MAX_LENGTH, answering=False)
    return fastest(plain, ["training"], without)[0]


def _train(spec: Task, runner: Runner, tokens_per_batch: int | None) -> dict[str, Any]:
    learned = spec.trees()
    (step,) = _plan(spec, runner, learned, tokens_per_batch).epoch(0)
    return {
        **_timed(spec, runner, learned, tokens_per_batch),
        # The clock cannot count tokens inside CUDA graphs.
        "tokens": sum(map(runner.size, step)),
        "flops": _flops(spec, runner.model, learned),
        "flops_separate": _flops(spec, runner.model, _apart(learned)),
        "tokens_separate": sum(tree.separate_length for tree in learned),
        "weights_mib": sum(p.nbytes for p in runner.model.parameters()) / 2**20,
    }


def _timed(
    spec: Task, runner: Runner, learned: list[Tree], tokens_per_batch: int | None
) -> dict[str, Any]:
    def fit() -> float:
        losses: list[float] = []
        _fit(spec, runner, learned, tokens_per_batch, lambda record: losses.append(record["loss"]))
        return losses[0]

    result = measure(runner.model, fit, spec.reference, spec.precision)
    return result | {"questions": sum(len(tree.branches) for tree in learned)}


def _fit(
    spec: Task,
    runner: Runner,
    learned: list[Tree],
    tokens_per_batch: int | None,
    on_record: Callable[[Any], None],
) -> None:
    """Run the training loop; each epoch is one optimizer step on all trees."""
    plan = _plan(spec, runner, learned, tokens_per_batch)
    settings = _settings(spec, plan.questions_per_step)
    with tempfile.TemporaryDirectory() as run:
        train(runner, plan, settings, RunDirectory(Path(run)), on_record=on_record)


def _plan(
    spec: Task, runner: Runner, learned: list[Tree], tokens_per_batch: int | None
) -> BatchPlan:
    questions = sum(len(tree.branches) for tree in learned)
    settings = _settings(spec, questions)
    budget = tokens_per_batch or settings.optimisation.tokens_per_batch
    return BatchPlan(learned, questions, budget, settings.seed, runner.size)


def _settings(spec: Task, questions: int) -> RunSettings:
    """Return the default settings, except those common to all contenders."""
    steps = 1 + spec.steps
    return parse_settings(
        {
            "model": {"source": str(spec.model_path), "dtype": spec.precision},
            "data": {"train": spec.data},
            "optimisation": {
                "questions_per_step": questions,
                "epochs": steps,
                "learning_rate": 1e-4,
                "clip_norm": None,
            },
        }
    )


def _flops(spec: Task, model: PreTrainedModel, learned: list[Tree]) -> int:
    lora = ADAPTERS[spec.adapter]
    adapted = matrices(model.config) if spec.adapter == "all-linear" else ["attn.c_attn"]
    return training_flops(model.config, lora.rank, list(adapted), tree_work(learned))


def _apart(learned: list[Tree]) -> list[Tree]:
    """Return one tree per question, each with its own copy of the context."""
    return [replace(tree, branches=(branch,)) for tree in learned for branch in tree.branches]
