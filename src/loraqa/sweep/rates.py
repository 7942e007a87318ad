"""A learning rate found by short trainings that differ in nothing else.

Each is a training of its own: it begins with the same adapter, sees the same questions in the same
order, warms up, and follows the schedule. It is judged by its loss on contexts that were set aside.

Short trainings favour high rates (Wu et al., 2018, "Understanding short-horizon bias in stochastic
meta-optimization"), and the loss on a few contexts is uncertain. So not the best rate is taken, but
the lowest one that is worse by no more than a standard error (Breiman et al., 1984).
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from loraqa.errors import DivergedError, InputError, LoraqaError, counted
from loraqa.files import temporary_folder
from loraqa.finetuning.ready import get_ready
from loraqa.model.runner import Runner
from loraqa.prompt.plan import BatchPlan, Step, pack
from loraqa.prompt.tree import Tree
from loraqa.report.tables import Column, Table
from loraqa.report.time_left import clock
from loraqa.train.data import TrainingData
from loraqa.train.loop import train
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings
from loraqa.train.stopping import StoppedError

logger = logging.getLogger("loraqa")

# What the rate of the settings is multiplied by: two steps to a factor of ten, both ways.
_FACTORS = tuple(10 ** (half / 2) for half in range(-2, 3))

# A short training takes a twentieth of the steps of the whole one, within these bounds.
_SHARE, _FEWEST_STEPS, _MOST_STEPS = 1 / 20, 8, 50

# Contexts are set aside until they have so many questions, but no more than this share of all.
_QUESTIONS, _LARGEST_SHARE = 200, 1 / 5


@dataclass(frozen=True)
class TriedRate:
    """A learning rate, and the loss that it led to in nats per token; None if it diverged."""

    learning_rate: float
    loss: float | None


@dataclass(frozen=True)
class FoundRate:
    """The learning rate that was taken.

    Attributes:
        learning_rate: the rate.
        tried: all rates, in order.
        steps: optimizer steps that each was tried for.
        contexts: how many contexts it was judged by.
    """

    learning_rate: float
    tried: tuple[TriedRate, ...]
    steps: int
    contexts: int


def find_learning_rate(
    settings: RunSettings, prepare: Callable[[RunSettings], TrainingData] | None = None
) -> FoundRate:
    """Try rates from a tenth to ten times that of the settings. Nothing is left behind.

    Raises:
        InputError: settings, data or model cannot be used, or the data have a single context.
        StoppedError: Ctrl-C or SIGTERM.
        LoraqaError: the model does not fit into memory, or no rate led to a finite loss.
    """
    ready = get_ready(settings, prepare=prepare)
    learned, aside = _set_aside(ready.training.encoded.trees, settings.seed)
    options = settings.optimisation
    plan = BatchPlan(
        learned,
        options.questions_per_step,
        options.tokens_per_batch,
        settings.seed,
        ready.runner.size,
    )
    judged = pack(aside, options.tokens_per_batch, ready.runner.size)
    steps = _steps(ready.work.steps)
    initial = {
        name: weight.detach().clone()
        for name, weight in ready.runner.model.named_parameters()
        if weight.requires_grad
    }
    tried: dict[float, dict[int, float]] = {}
    start = time.monotonic()
    for number, factor in enumerate(_FACTORS, 1):
        # A rate that people would write.
        rate = float(f"{factor * options.learning_rate:.2g}")
        _put_back(ready.runner, initial)
        tried[rate] = _try(ready.runner, plan, settings, rate, steps, judged)
        left = (time.monotonic() - start) / number * (len(_FACTORS) - number)
        logger.info(
            f"Tried the learning rate {rate:g} for {steps} steps, {number} of {len(_FACTORS)}"
            + (f"; {clock(left)} left." if left else ".")
        )
    tokens = sum(len(branch.answer) for tree in aside for branch in tree.branches)
    told = tuple(
        TriedRate(rate, sum(losses.values()) / tokens if losses else None)
        for rate, losses in tried.items()
    )
    contexts = len({tree.passage for tree in aside})
    return FoundRate(choose_rate(tried), told, steps, contexts)


def choose_rate(tried: Mapping[float, Mapping[int, float]]) -> float:
    """Return the lowest rate that is worse than the best by no more than a standard error.

    Args:
        tried: for each rate the loss on each context, summed over its tokens; none if it diverged.

    Raises:
        LoraqaError: all diverged.
    """
    finite = {rate: losses for rate, losses in tried.items() if losses}
    if not finite:
        raise LoraqaError(
            f"No learning rate from {min(tried):g} to {max(tried):g} led to a finite loss; set a "
            "much lower optimisation.learning_rate."
        )
    best = min(finite.values(), key=lambda losses: sum(losses.values()))
    return min(rate for rate, losses in finite.items() if _as_good(losses, best))


def _as_good(losses: Mapping[int, float], best: Mapping[int, float]) -> bool:
    """Return whether the sum of the differences is at most its standard error."""
    worse = np.array([losses[context] - best[context] for context in best])
    error = worse.std(ddof=1) * math.sqrt(len(worse)) if len(worse) > 1 else 0.0
    return bool(worse.sum() <= error)


def rates_table(found: FoundRate) -> Table:
    """Return a table of the rates that were tried."""
    rows = tuple(
        (
            f"{each.learning_rate:g}",
            "not finite" if each.loss is None else f"{each.loss:.3f}",
            "taken" if each.learning_rate == found.learning_rate else "",
        )
        for each in found.tried
    )
    title = f"Learning rates, each tried for {found.steps} steps"
    return Table(title, (Column("rate"), Column("loss"), Column("")), rows)


def what_was_taken(found: FoundRate) -> str:
    """Return a sentence that says which rate was taken, and why."""
    rates = [each.learning_rate for each in found.tried]
    ends = {rates[0]: "lowest", rates[-1]: "highest"}
    at_end = ends.get(found.learning_rate)
    beyond = (
        f"; it is the {at_end} of all, so try rates beyond it (`loraqa sweep`)" if at_end else ""
    )
    return (
        f"Training with the learning rate {found.learning_rate:g}, the lowest that is no worse "
        f"than the best by more than the uncertainty on {counted(found.contexts, 'context')}"
        f"{beyond}."
    )


def _set_aside(trees: Sequence[Tree], seed: int) -> tuple[list[Tree], list[Tree]]:
    """Return the trees to learn from, and those of some contexts, to judge by."""
    passages = sorted({tree.passage for tree in trees})
    if len(passages) < 2:
        raise InputError(
            "A learning rate is found by the loss on contexts that are not learned from, but the "
            "training data have only one; leave --find-learning-rate out."
        )
    questions: dict[int, int] = defaultdict(int)
    for tree in trees:
        questions[tree.passage] += len(tree.branches)
    chosen: set[int] = set()
    for passage in np.random.default_rng(seed).permutation(passages).tolist():
        enough = sum(questions[each] for each in chosen) >= _QUESTIONS
        if chosen and (enough or len(chosen) + 1 > _LARGEST_SHARE * len(passages)):
            break
        chosen.add(passage)
    learned = [tree for tree in trees if tree.passage not in chosen]
    return learned, [tree for tree in trees if tree.passage in chosen]


def _steps(total: int) -> int:
    return min(max(round(_SHARE * total), _FEWEST_STEPS), _MOST_STEPS, total)


@torch.no_grad()
def _put_back(runner: Runner, initial: Mapping[str, torch.Tensor]) -> None:
    weights = dict(runner.model.named_parameters())
    for name, weight in initial.items():
        weights[name].copy_(weight)


def _try(
    runner: Runner, plan: BatchPlan, settings: RunSettings, rate: float, steps: int, judged: Step
) -> dict[int, float]:
    """Train for some steps in a temporary folder; return the loss on each context set aside.

    It is empty if the training diverged.
    """
    options = {"optimisation.learning_rate": rate, "optimisation.max_steps": steps}
    # The last step has a checkpoint in any case.
    short = settings.with_values({**options, "checkpoint.every": steps})
    with temporary_folder() as folder:
        run = RunDirectory(folder)
        run.start(short, {}, {})
        try:
            train(runner, plan, short, run)
        except DivergedError:
            return {}
        except StoppedError as stopped:
            raise StoppedError(
                f"Stopped by {stopped.received.name} while a learning rate was sought; nothing is "
                "kept.",
                stopped.received,
            ) from None
    losses = _losses(runner, judged)
    return losses if all(map(math.isfinite, losses.values())) else {}


@torch.no_grad()
def _losses(runner: Runner, judged: Step) -> dict[int, float]:
    """Return the loss on each context, summed over its tokens, in nats."""
    losses: dict[int, float] = defaultdict(float)
    for trees in judged:
        logits, targets = runner.answer_logits(trees)
        each = cross_entropy(logits.float(), targets, reduction="none").tolist()
        for tree in trees:
            count = sum(len(branch.answer) for branch in tree.branches)
            losses[tree.passage] += sum(each[:count])
            each = each[count:]
    return dict(losses)
