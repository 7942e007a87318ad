"""The recipe: get ready, train and score, write the adapter, calibrate it, report its answers."""

import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loraqa.adapter.card import CARD, model_card
from loraqa.adapter.evaluation import Evaluation
from loraqa.adapter.info import AdapterInfo, BaseInfo, write_adapter_info
from loraqa.answer.together import SharedScoring
from loraqa.distributed.launch import tell_how_to_use_all
from loraqa.distributed.ranks import ALONE, Ranks
from loraqa.files import replacing_folder, write_text
from loraqa.finetuning.finish import calibrate_and_report
from loraqa.finetuning.reading import SCORING
from loraqa.finetuning.ready import Ready, get_ready
from loraqa.model.runner import Runner
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.reader import Reader
from loraqa.report.progress import no_progress, training_progress
from loraqa.squad import QADataset
from loraqa.train.checkpoint import TrainState
from loraqa.train.data import TrainingData, describe
from loraqa.train.environment import environment
from loraqa.train.loop import train
from loraqa.train.manifest import checkpoint_folder, newest_whole, step_of, whole_adapter
from loraqa.train.run import Record, RunDirectory, check_same, warn_of_other_accelerations
from loraqa.train.settings import RunSettings
from loraqa.train.start import fingerprint

logger = logging.getLogger("loraqa")


@dataclass(frozen=True)
class FinetuneResult:
    """The result of a run.

    Attributes:
        run: the folder of the run; `Reader.load(run)` answers with the adapter in it.
        steps: optimizer steps done.
        before, after: scores on the dev sample before the first step, and with the saved adapter;
            None without dev data.
        training_seconds, evaluation_seconds: time spent on each, including time before a resume.
    """

    run: Path
    steps: int
    before: Evaluation | None
    after: Evaluation | None
    training_seconds: float
    evaluation_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {**asdict(self), "run": str(self.run)}


def finetune(
    settings: RunSettings,
    run_dir: Path,
    *,
    resume: bool = False,
    command: str = "finetune(settings, run_dir)",
    prepare: Callable[[RunSettings], TrainingData] | None = None,
    change: Callable[[Runner, SegmentTokenizer], Runner] | None = None,
    on_record: Callable[[Record], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> FinetuneResult:
    """Fine-tune a model as `settings` say, in the folder `run_dir`.

    Args:
        settings: the settings of the run; on resuming, the settings that it began with.
        run_dir: a new or empty folder; on resuming, the folder of the run.
        resume: go on from the newest complete checkpoint.
        command: the command that made the run, for its model card.
        prepare: prepares the training data; by default `accelerated_preparation`.
        change: returns the runner to train and score with; an experiment changes the given one.
        on_record: called with every record of the metrics; what it raises ends the training.
        ranks: the processes that train together (see `loraqa.distributed`). All call this function
            with the same settings; only the first uses `run_dir`, and calibrates.

    Raises:
        InputError: settings, data, model or folder cannot be used, or another process trains in
            the folder; nothing was trained.
        StoppedError: Ctrl-C or SIGTERM; a checkpoint was written.
        LoraqaError: the model does not fit into memory, or the training failed; its checkpoints
            are whole.
    """
    settings = settings.with_full_paths().with_template()
    run = RunDirectory(run_dir, ranks.launcher)
    tell_how_to_use_all(settings.model.device, command, ranks)
    with run.writing(settings, resume) if ranks.is_first else nullcontext():
        result, held_out, sample = _finetune(
            settings, run, resume, command, prepare, change, on_record, ranks
        )
        finish = partial(calibrate_and_report, run, settings, held_out, sample, command)
        ranks.of_first(finish, "rank 0 to calibrate and to write the report")
    return result


def _finetune(
    settings: RunSettings,
    run: RunDirectory,
    resume: bool,
    command: str,
    prepare: Callable[[RunSettings], TrainingData] | None,
    change: Callable[[Runner, SegmentTokenizer], Runner] | None,
    on_record: Callable[[Record], None],
    ranks: Ranks,
) -> tuple[FinetuneResult, QADataset, QADataset | None]:
    """Train, and write the adapter. Return the held-out questions and the dev sample, too.

    This stays a function of its own: only when its frame is gone are the model and the optimizer
    freed, so that calibration, which loads the adapter over its base again, has their memory.
    """
    checkpoint = newest_whole(run.checkpoints) if ranks.is_first else None
    ready = get_ready(settings, checkpoint, prepare, change, ranks=ranks)
    _begin(run, settings, ready, checkpoint, resume, command, ranks)
    state = _train(run, settings, ready, checkpoint, on_record, ranks)
    if ranks.is_first:
        _write_adapter(run, settings, ready, state, command)
    result = FinetuneResult(
        run=run.path,
        steps=state.step,
        before=state.baseline,
        after=state.best,
        training_seconds=state.training_seconds,
        evaluation_seconds=state.evaluation_seconds,
    )
    return result, ready.training.held_out, ready.sample


def _begin(
    run: RunDirectory,
    settings: RunSettings,
    ready: Ready,
    checkpoint: Path | None,
    resume: bool,
    command: str,
    ranks: Ranks,
) -> None:
    """Write what the run begins with, or check that a resumed run goes on with the same."""
    reader, model = ready.reader, ready.runner.model
    facts = {
        "base": ready.base.model_dump(),
        "train": ready.training.facts,
        "template": {"sha256": reader.template.fingerprint},
    }
    if ready.dev is not None:
        facts["dev"] = describe(ready.dev)
    check_same(ranks, facts)
    if settings.lora.start and checkpoint is None and ranks.is_first:
        facts["start"] = {"sha256": fingerprint(settings.lora.start)}
    warn_of_other_accelerations(ranks, ready.accelerations)
    now = environment(model.device, model.dtype, command, ready.accelerations, ranks.size)
    begin = partial(run.resume if resume else run.start, settings, facts, now)
    ranks.of_first(begin, "rank 0 to begin the run")


def _train(
    run: RunDirectory,
    settings: RunSettings,
    ready: Ready,
    checkpoint: Path | None,
    on_record: Callable[[Record], None],
    ranks: Ranks,
) -> TrainState:
    """Do all steps and scorings, and show their progress."""
    done = step_of(checkpoint)
    shown = training_progress(ready.work, done) if ranks.is_first else no_progress()
    with shown as progress:

        def show_and_pass_on(record: Record) -> None:
            progress.record(record)
            on_record(record)

        scoring = None
        if ready.sample is not None:
            scoring = SharedScoring(ready.reader, ready.sample, SCORING, ranks, progress.scoring)
        return train(
            ready.runner,
            ready.plan,
            settings,
            run,
            checkpoint=checkpoint,
            scoring=scoring,
            on_record=show_and_pass_on,
            ranks=ranks,
        )


def _write_adapter(
    run: RunDirectory, settings: RunSettings, ready: Ready, state: TrainState, command: str
) -> None:
    """Write the adapter of the best checkpoint; of the last one if nothing was scored.

    Where that checkpoint was damaged since, the adapter that was made from it is written again.
    """
    info = _adapter_info(ready.reader, ready.base)
    card = model_card(
        info,
        before=state.baseline,
        after=state.best,
        strategy=SCORING.name,
        steps=state.step,
        training_seconds=state.training_seconds,
        data=ready.training.facts,
        shared=ready.shared,
        command=command,
        settings_yaml=settings.to_yaml(),
    )
    checkpoint = checkpoint_folder(run.checkpoints, state.best.step if state.best else state.step)
    source = whole_adapter(checkpoint, run.path)
    with replacing_folder(run.adapter) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        write_adapter_info(folder, info)
        write_text(folder / CARD, card)


def _adapter_info(reader: Reader, base: BaseInfo) -> AdapterInfo:
    return AdapterInfo(
        base=base,
        template=reader.template.text,
        max_length=reader.max_length,
        stride=reader.stride,
        max_answer_tokens=reader.max_answer_tokens,
        version="1.1" if reader.no_answer_threshold is None else "2.0",
        window_length=reader.window_length,
        learned_no_answer=reader.learned_no_answer,
        no_answer_threshold=reader.no_answer_threshold,
        calibration=reader.calibration,
    )
