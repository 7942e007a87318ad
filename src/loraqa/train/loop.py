"""The training loop: optimizer steps, with evaluations and checkpoints between them."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from signal import Signals
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from loraqa.adapter.evaluation import Evaluation
from loraqa.distributed.ranks import ALONE, Ranks
from loraqa.errors import DivergedError, InputError, explain, some_of
from loraqa.lora.flat import FlatAdapter
from loraqa.lora.layer import lora_layers
from loraqa.model.loss import Launch, supervised_tokens
from loraqa.model.memory import explaining_lack_of_memory, peak_memory
from loraqa.model.runner import Runner
from loraqa.prompt.plan import Plan, Step
from loraqa.squad import Scores
from loraqa.train.checkpoint import (
    SaveWeights,
    TrainState,
    begin_optimizer,
    kept_evaluations,
    remove_superseded,
    restore,
    save_checkpoint,
    save_lora,
)
from loraqa.train.loraplus import lengthen_steps_of_b
from loraqa.train.manifest import checkpoint_folder, whole_adapter
from loraqa.train.run import Record, RunDirectory
from loraqa.train.schedule import learning_rate, scoring_steps, total_steps
from loraqa.train.settings import OptimisationSettings, RunSettings
from loraqa.train.stopping import StoppedError, StopRequest

logger = logging.getLogger("loraqa")


class Scoring(Protocol):
    """What scores the model on the dev data; the processes share the questions."""

    def answer(self) -> Any:
        """Return the answers of this process, plain JSON values."""

    def merge(self, own: Any) -> Scores | None:
        """Return the scores of the answers of all processes, the same in all.

        Args:
            own: what `answer` returned here, or None if it was stopped.

        Returns:
            None if `answer` was stopped in some process.
        """


def train(
    runner: Runner,
    plan: Plan,
    settings: RunSettings,
    run: RunDirectory,
    *,
    checkpoint: Path | None = None,
    scoring: Scoring | None = None,
    on_record: Callable[[Record], None] = lambda _: None,
    save_weights: SaveWeights = save_lora,
    ranks: Ranks = ALONE,
) -> TrainState:
    """Train the adapter in `runner.model`; checkpoints of the last and the best step stay in `run`.

    Args:
        runner: computes the model, which holds a new adapter or the adapter of `checkpoint`.
        plan: the training data, step by step.
        settings: the settings of the run.
        run: the folder for metrics and checkpoints.
        checkpoint: where to go on; the result is bit-identical to an uninterrupted training.
        scoring: scores the model on the dev data; None if there are none.
        on_record: called with every record of the metrics.
        save_weights: writes the trained weights of a checkpoint; by default those of LoRA.
        ranks: the processes that train together. All call this function with the same data and
            settings; the first writes to `run`, and only it is given `checkpoint`.

    Raises:
        StoppedError: the user stopped the training, and a checkpoint was written.
        DivergedError, LoraqaError: the loss is not finite, or memory is out; no checkpoint is
            written, and the adapter in memory is unusable.
        PeerError: another process has ended.
    """
    training = _Training(runner, plan, settings, run, scoring, on_record, save_weights, ranks)
    if checkpoint is not None:
        training.take_over(checkpoint)
        training.tell_if_done()
    training.start_together()
    if ranks.is_first:
        run.cut_back(training.state)
    with StopRequest() as stop:
        training.fit(stop)
    return training.state


@dataclass(frozen=True)
class _PlannedStep:
    """An optimizer step, the `index`-th of `length` in its epoch.

    Attributes:
        micro_batches: the whole step, as one process computes it.
        compute_gradients: computes the part of this process.
    """

    micro_batches: Step
    compute_gradients: Launch
    epoch: int
    index: int
    length: int

    @property
    def question_ids(self) -> list[str]:
        """The ids of the step's questions."""
        trees = [tree for trees in self.micro_batches for tree in trees]
        return [branch.question_id for tree in trees for branch in tree.branches]


@dataclass(frozen=True)
class _LaunchedStep:
    """An optimizer step that the device may still be computing.

    Attributes:
        planned: the step.
        rate: its learning rate.
        numbers: its gradient's norm, its loss and, with several processes, whether one is asked to
            stop; valid once `wait` has returned.
        wait: waits for these numbers, but not for steps launched later.
    """

    planned: _PlannedStep
    rate: float
    numbers: Tensor
    wait: Callable[[], None]


@dataclass
class _Training:
    """A training in progress: its inputs and its state."""

    runner: Runner
    plan: Plan
    settings: RunSettings
    run: RunDirectory
    scoring: Scoring | None
    on_record: Callable[[Record], None]
    save_weights: SaveWeights
    ranks: Ranks

    def __post_init__(self) -> None:
        self.model = self.runner.model
        self.adapter = FlatAdapter(self.model)
        self.gradients = self.runner.gradients(self.adapter)
        self.optimizer = _adamw(self.adapter, self.settings.optimisation)
        self.total = total_steps(self.plan, self.settings.optimisation)
        self.scorings = set(scoring_steps(self.total, self.settings.evaluation))
        self.state = TrainState()
        self.saved_step = 0
        self.asked_to_stop = False
        self.ahead = _steps_ahead(self.model.device)
        self.lap_start = time.perf_counter()

    def take_over(self, checkpoint: Path) -> None:
        """Restore the state of a checkpoint."""
        self.state = restore(checkpoint, self.adapter, self.optimizer)
        self.saved_step = self.state.step
        # A process may have died while it removed one.
        self._remove_superseded()
        if self.state.best:
            self.state.best = self._best_kept(self.state.best)

    def _best_kept(self, best: Evaluation) -> Evaluation | None:
        """Return the best evaluation whose adapter is whole; `best` is that of all."""
        try:
            whole_adapter(checkpoint_folder(self.run.checkpoints, best.step), self.run.path)
        except (InputError, OSError) as error:
            metric = self.settings.evaluation.metric
            kept = kept_evaluations(self.run.checkpoints, self.state.step)
            next_best = max(kept, key=lambda each: (getattr(each, metric), each.step), default=None)
            which = f"Step {next_best.step}" if next_best else "The best of the later scorings"
            logger.warning(
                f"{explain(error)[0]} It had the best scores of this run. {which} replaces it."
            )
            return next_best
        return best

    def start_together(self) -> None:
        """Let all processes start with the state, the weights and the optimizer of the first."""
        what = "rank 0 to read its checkpoint"
        values = self.ranks.of_first(lambda: asdict(self.state), what)
        self.state = TrainState.from_json(values)
        self.saved_step = self.state.step
        moments = begin_optimizer(self.adapter, self.optimizer) if self.state.step else []
        self.ranks.copy_(self.adapter.vector.detach(), *moments, what=what)

    def tell_if_done(self) -> None:
        """Log that nothing is left to train, if so."""
        if self._is_done():
            logger.info(
                f"The training in {self.run.path} was finished after step {self.state.step}; "
                "nothing is left to train."
            )

    def fit(self, stop: StopRequest) -> None:
        """Train to the end, or until the user asks to stop."""
        steps = self._remaining_steps()
        self._lap()
        self._set_mode(training=True)
        while True:
            if self.scoring and self._evaluation_is_due():
                self._evaluate(self.scoring, stop)
            received = self.ranks.agree(stop.received)
            if self._checkpoint_is_due(received):
                self._save()
            if self._is_done():
                break
            if received:
                raise StoppedError(self._how_to_resume(received), received)
            self._train(steps, stop)
        self._set_mode(training=False)

    def _remaining_steps(self) -> Iterator[_PlannedStep]:
        start = self.state.step_in_epoch
        for epoch in count(self.state.epoch):
            length = self.plan.steps_in(epoch)
            for index, step in enumerate(self.plan.epoch(epoch, start), start):
                yield self._planned(step, epoch, index, length)
            start = 0

    def _planned(self, step: Step, epoch: int, index: int, length: int) -> _PlannedStep:
        budget = self.settings.optimisation.tokens_per_batch
        part = self.ranks.part(step, budget, self.runner.size)
        gradients = self.gradients(part, supervised_tokens(step))
        return _PlannedStep(step, gradients, epoch, index, length)

    def _train(self, steps: Iterator[_PlannedStep], stop: StopRequest) -> None:
        """Do optimizer steps until something else is due, or the user asks to stop."""
        under_way: deque[_LaunchedStep] = deque()
        due = False
        while not due:
            done = self.state.step + len(under_way)
            with self._explaining_lack_of_memory(f"in step {done + 1}"):
                under_way.append(self._launch(next(steps), done, stop))
                if len(under_way) > self.ahead:
                    self._complete(under_way.popleft())
            due = self._is_to_stop(stop) or self._something_is_due(done + 1)
        while under_way:
            self._complete(under_way.popleft())

    def _is_to_stop(self, stop: StopRequest) -> bool:
        """Return whether to stop. Several processes learn it with a step, all with the same."""
        return self.asked_to_stop if self.ranks.size > 1 else stop.received is not None

    def _launch(self, planned: _PlannedStep, done: int, stop: StopRequest) -> _LaunchedStep:
        """Launch the optimizer step after `done` steps; a GPU may finish it later."""
        options = self.settings.optimisation
        rate = learning_rate(done, self.total, options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.settings.lora.dropout:
            _seed_step(self.settings.seed, done, self.ranks.rank)
        loss = planned.compute_gradients()
        asked = stop.received is not None
        loss_and_asked = self.ranks.add_up(self.adapter, loss, asked)
        norm = clip_grad_norm_(self.adapter.vector, options.clip_norm or math.inf)
        self.optimizer.step()
        self.adapter.gradient.zero_()
        return _LaunchedStep(planned, rate, *_fetch(torch.stack([norm, *loss_and_asked])))

    def _complete(self, launched: _LaunchedStep) -> None:
        """Wait for a step, and record it if loss and norm are finite."""
        planned, state = launched.planned, self.state
        launched.wait()
        norm, loss, *asked = launched.numbers.tolist()
        self.asked_to_stop = any(asked)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(self._explain_divergence(planned, loss, norm))
        state.step += 1
        state.epoch, state.step_in_epoch = planned.epoch, planned.index + 1
        self._record(
            "train",
            epoch=planned.epoch + (planned.index + 1) / planned.length,
            loss=loss,
            learning_rate=launched.rate,
            gradient_norm=norm,
            **self._speed(planned),
            memory_mib=peak_memory(self.model.device) / 2**20,
        )

    def _something_is_due(self, step: int) -> bool:
        """Return whether an evaluation, a checkpoint or the end may follow this step."""
        intervals = self.settings.evaluation.every, self.settings.checkpoint.every
        return step == self.total or any(step % every == 0 for every in intervals)

    def _speed(self, planned: _PlannedStep) -> dict[str, float]:
        """Return time and speed since the last step; checkpoints count, evaluations do not."""
        seconds = self._lap()
        self.state.training_seconds += seconds
        tokens = sum(map(self.runner.size, planned.micro_batches))
        return {
            "seconds": seconds,
            "questions_per_second": len(planned.question_ids) / seconds,
            "tokens_per_second": tokens / seconds,
        }

    def _evaluation_is_due(self) -> bool:
        step, latest = self.state.step, self.state.latest
        if latest and latest.step == step:
            return False
        return step in self.scorings

    def _evaluate(self, scoring: Scoring, stop: StopRequest) -> None:
        """Score the model; if the user asks to stop meanwhile, drop the scores."""
        self.state.training_seconds += self._lap()
        self._set_mode(training=False)
        with self._explaining_lack_of_memory(f"while scoring step {self.state.step}"):
            scores = scoring.merge(stop.unless_stopped(scoring.answer))
        self._set_mode(training=True)
        seconds = self._lap()
        if scores is None:
            return
        latest = Evaluation(self.state.step, scores.exact_match, scores.f1, scores.total)
        self._compare(latest)
        self.state.evaluation_seconds += seconds
        self._record("evaluation", **asdict(latest), seconds=seconds)

    def _compare(self, latest: Evaluation) -> None:
        """Keep the best evaluation; of two equal ones the later, which has learned longer."""
        state, metric = self.state, self.settings.evaluation.metric
        state.latest = latest
        if latest.step == 0:
            state.baseline = latest
            return
        before = getattr(state.best, metric) if state.best else -1.0
        now = getattr(latest, metric)
        state.without_gain = 0 if now > before else state.without_gain + 1
        if now >= before:
            state.best = latest

    def _is_done(self) -> bool:
        if self.scoring and self._evaluation_is_due():
            return False
        patience = self.settings.evaluation.patience
        tired = patience is not None and self.state.without_gain >= patience
        return tired or self.state.step == self.total

    def _checkpoint_is_due(self, received: Signals | None) -> bool:
        state = self.state
        if state.step == self.saved_step:
            # The weights are saved. An evaluation since then will be repeated.
            return False
        is_best = state.best is not None and state.best.step == state.step
        regular = state.step % self.settings.checkpoint.every == 0
        return regular or is_best or self._is_done() or received is not None

    def _save(self) -> None:
        self.saved_step = self.state.step
        if not self.ranks.is_first:
            return
        self.run.flush()
        save_checkpoint(
            self.run.checkpoints,
            self.model,
            self.adapter,
            self.optimizer,
            self.state,
            self.run.texts,
            self.save_weights,
        )
        self._remove_superseded()

    def _remove_superseded(self) -> None:
        keep = self.settings.checkpoint.keep
        remove_superseded(self.run.checkpoints, self.state.step, keep)

    def _record(self, kind: str, **values: float) -> None:
        record = {"kind": kind, "step": self.state.step, **values}
        if self.ranks.is_first:
            self.run.append(record)
        self.on_record(record)

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        start, self.lap_start = self.lap_start, time.perf_counter()
        return self.lap_start - start

    def _set_mode(self, training: bool) -> None:
        """Use dropout in LoRA layers while training; the base model has none."""
        self.model.eval()
        for layer in lora_layers(self.model).values():
            layer.train(training)

    def _how_to_resume(self, received: Signals) -> str:
        return (
            f"Stopped by {received.name} after step {self.state.step} of {self.total}; go on with "
            f"`{self.run.command_to_resume}`."
        )

    def _explain_divergence(self, planned: _PlannedStep, loss: float, norm: float) -> str:
        ids = planned.question_ids
        rate = self.settings.optimisation.learning_rate
        more_precise = "" if self.model.dtype.itemsize > 2 else ", or model.dtype=float32"
        return (
            f"The loss is {loss} and the gradient's norm {norm} in step {self.state.step + 1} "
            f"(questions {some_of(ids)}), so the run is stopped and this step is not kept; start "
            "again in another folder (--out), with an "
            f"optimisation.learning_rate lower than {rate}{more_precise}."
        )

    def _explaining_lack_of_memory(self, where: str) -> AbstractContextManager[None]:
        return explaining_lack_of_memory(
            where,
            "lower optimisation.tokens_per_batch from "
            f"{self.settings.optimisation.tokens_per_batch} and go on with --resume",
        )


def _adamw(adapter: FlatAdapter, options: OptimisationSettings) -> AdamW:
    optimizer = AdamW(
        [adapter.vector],
        lr=options.learning_rate,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=True,
    )
    if options.b_rate_ratio != 1:
        lengthen_steps_of_b(optimizer, adapter, options.b_rate_ratio)
    return optimizer


def _steps_ahead(device: torch.device) -> int:
    """Return how many steps to launch ahead: 1 on a GPU, which computes while the CPU records."""
    return 1 if device.type == "cuda" else 0


def _fetch(numbers: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Start copying numbers to the CPU; return them and a function that waits for them."""
    if not numbers.is_cuda:
        return numbers.cpu(), lambda: None
    fetched = numbers.to("cpu", non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return fetched, arrival.synchronize


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of seed, step and rank.

    So checkpoints need no generator's state, and processes drop different numbers.
    """
    place = (seed, step, rank) if rank else (seed, step)
    (drawn,) = np.random.SeedSequence(place).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn))
