"""The recipe: read → load → encode → adapt → train and score → the adapter, ready to answer.

settings = load_settings([Path("squad.yaml")], ["data.dev=dev.json"])
result = finetune(settings, Path("runs/squad"))
Reader.load("runs/squad").answer(context, questions)
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import PreTrainedModel

from loraqa.adapter.base import describe_base
from loraqa.adapter.card import CARD, model_card
from loraqa.adapter.evaluation import Evaluation
from loraqa.adapter.info import AdapterInfo, BaseInfo, write_adapter_info
from loraqa.answer.evaluate import evaluate, sample_questions
from loraqa.answer.reader import Reader
from loraqa.errors import InputError, some_of
from loraqa.files import replacing_folder, write_text
from loraqa.lora.adapt import adapt, parameter_counts
from loraqa.lora.adapter import load_adapter
from loraqa.model.choose import choose_runner
from loraqa.model.gelu import compiled_gelu
from loraqa.model.load import load_model
from loraqa.model.runner import Runner
from loraqa.model.source import choose_max_length
from loraqa.prompt.encode import Encoded
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.template import Template
from loraqa.report.progress import training_progress
from loraqa.squad import QADataset, Scores, read_passages
from loraqa.train.checkpoint import (
    ADAPTER,
    TrainState,
    check_whole,
    checkpoint_folder,
    newest_whole,
    step_of,
)
from loraqa.train.data import TrainingData, describe, read_training_data
from loraqa.train.environment import environment
from loraqa.train.loop import train
from loraqa.train.run import RunDirectory
from loraqa.train.schedule import total_steps
from loraqa.train.settings import DataSettings, ModelSettings, RunSettings

logger = logging.getLogger("loraqa")

# How many times the tokens of a training batch are computed at once for scoring, where of what a
# layer computes no more than keys and values is kept.
_WITHOUT_GRADIENTS = 4


@dataclass(frozen=True)
class FinetuneResult:
    """What a run ended with.

    Attributes:
        run: its folder; `Reader.load(run)` answers with the adapter in it.
        steps: optimizer steps done.
        before, after: scores on the dev sample without the adapter and with the one that was
            kept; None without dev data.
        training_seconds, evaluation_seconds: time spent on each, over all resumptions.
    """

    run: Path
    steps: int
    before: Evaluation | None
    after: Evaluation | None
    training_seconds: float
    evaluation_seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {**asdict(self), "run": str(self.run)}


def finetune(
    settings: RunSettings,
    run_dir: Path,
    *,
    resume: bool = False,
    command: str = "finetune(settings, run_dir)",
    data: Callable[[], TrainingData] | None = None,
) -> FinetuneResult:
    """Fine-tune a model as `settings` say, in the folder `run_dir`.

    Args:
        settings: of the run; on resuming, those that it began with.
        run_dir: new or empty; on resuming, that of the run.
        resume: go on from the newest whole checkpoint.
        command: what made the run, for its model card.
        data: waits for the training data, if they are prepared elsewhere already.

    Raises:
        InputError: settings, data, model or folder cannot be used; nothing was trained.
        StoppedError: Ctrl-C or SIGTERM; a checkpoint of where it stood is written.
        LoraqaError: the model does not fit into memory, or the training failed; its checkpoints
            are whole.
    """
    settings = settings.with_full_paths()
    run = RunDirectory(run_dir)
    run.check_usable(settings, resume)
    wait_for_data = data or _read_now(settings)
    dev = _read_dev(settings.data)
    model = load_model(**settings.model.model_dump())
    max_length = choose_max_length(settings.prompt.max_length, model.config)
    # Hashing GPT-2's weights takes half as long as the trial.
    base = _beside(lambda: _describe_base(settings.model, model))
    with _one_core_less():
        runner = choose_runner(model, max_length, training=True, answering=dev is not None)
    training = wait_for_data()
    _tell(training, max_length)
    reader = _reader(settings, runner, max_length, training)
    checkpoint = newest_whole(run.checkpoints)
    _put_in_adapter(model, settings, checkpoint)
    facts = {"base": base.result().model_dump(), "train": training.facts}
    if dev is not None:
        facts["dev"] = describe(dev)
    plan = _plan(settings, training.encoded, reader)
    total, done = total_steps(plan, settings.optimisation), step_of(checkpoint)
    kernels = {
        "compiled_gelu": compiled_gelu(model),
        "runner": type(reader.runner).__name__,
    }
    surroundings = environment(model.device, model.dtype, command) | kernels
    begin = run.resume if resume else run.start
    begin(settings, facts, surroundings)

    with training_progress(total, done) as report:
        state = train(
            reader.runner,
            plan,
            settings,
            run,
            checkpoint=checkpoint,
            evaluate=_scorer(settings, reader, dev),
            report=report,
        )
    info = _adapter_info(reader, base.result())
    card = model_card(
        info,
        before=state.baseline,
        after=state.best,
        steps=state.step,
        training_seconds=state.training_seconds,
        data=training.facts,
        command=command,
        settings_yaml=settings.to_yaml(),
    )
    _write_adapter(run, state, info, card)
    return FinetuneResult(
        run=run.path,
        steps=state.step,
        before=state.baseline,
        after=state.best,
        training_seconds=state.training_seconds,
        evaluation_seconds=state.evaluation_seconds,
    )


def _read_now(settings: RunSettings) -> Callable[[], TrainingData]:
    """Bad data are told before a model is loaded."""
    training = read_training_data(settings)
    return lambda: training


def _describe_base(settings: ModelSettings, model: PreTrainedModel) -> BaseInfo:
    return describe_base(
        settings.source,
        model,
        revision=settings.revision,
        random_weights=settings.random_weights,
    )


def _beside(work: Callable[[], BaseInfo]) -> Future[BaseInfo]:
    """Do work in a thread for which nothing waits but who asks for the result; Ctrl-C does not."""
    future: Future[BaseInfo] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=do, daemon=True).start()
    return future


@contextmanager
def _one_core_less() -> Iterator[None]:
    """Leave a core to what is done beside.

    Where there are more threads than cores, all wait again and again for the one that is not run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads - 1, 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read_dev(settings: DataSettings) -> QADataset | None:
    return read_passages(settings.dev, on_bad=settings.on_bad) if settings.dev is not None else None


def _tell(training: TrainingData, max_length: int) -> None:
    """Say what there is to learn from. Raises `InputError` where it is nothing."""
    source, counts = training.facts["source"], training.encoded.counts
    logger.info(
        f"Training on {counts.questions:,} questions on {counts.passages:,} contexts of "
        f"{source}: {counts.tree_tokens:,} tokens as trees, {counts.separate_tokens:,} as "
        "separate examples."
    )
    if counts.windowed:
        logger.warning(
            f"{counts.windowed:,} contexts are longer than {max_length} tokens allow and "
            f"are read in windows: {counts.left_out:,} examples whose window holds no answer are "
            f"left out, {counts.not_here:,} are trained to say so."
        )
    if counts.skipped:
        logger.warning(
            f"{len(counts.skipped):,} questions are skipped, for no window holds their whole "
            f"answer: {some_of(counts.skipped)}."
        )
    if not training.encoded.trees:
        raise InputError(f"{source} holds no question to train on.")


def _reader(
    settings: RunSettings, runner: Runner, max_length: int, training: TrainingData
) -> Reader:
    """The model, and how questions are put to it, in training as in answering."""
    return Reader(
        runner,
        training.tokenizer,
        Template(settings.prompt.template),
        max_length,
        settings.prompt.stride,
        settings.evaluation.max_answer_tokens,
        no_answer=not training.all_answerable,
        tokens_per_batch=_WITHOUT_GRADIENTS * settings.optimisation.tokens_per_batch,
    )


def _put_in_adapter(model: PreTrainedModel, settings: RunSettings, checkpoint: Path | None) -> None:
    if checkpoint is None:
        adapt(model, settings.lora, settings.seed)
    else:
        logger.info("Going on from %s.", checkpoint)
        load_adapter(model, checkpoint / ADAPTER)
    logger.info("%s.", parameter_counts(model))


def _plan(settings: RunSettings, encoded: Encoded, reader: Reader) -> BatchPlan:
    options = settings.optimisation
    return BatchPlan(
        encoded.trees,
        options.questions_per_step,
        options.tokens_per_batch,
        settings.seed,
        reader.runner.size,
    )


def _scorer(
    settings: RunSettings, reader: Reader, data: QADataset | None
) -> Callable[[], Scores] | None:
    """Scores greedy answers to the same sample of the dev data each time."""
    if data is None:
        return None
    count = settings.evaluation.questions or len(data.questions)
    sample = sample_questions(data, count, settings.seed)
    return lambda: evaluate(reader, sample).scores


def _adapter_info(reader: Reader, base: BaseInfo) -> AdapterInfo:
    return AdapterInfo(
        base=base,
        template=reader.template.text,
        max_length=reader.max_length,
        stride=reader.stride,
        max_answer_tokens=reader.max_answer_tokens,
        version="2.0" if reader.no_answer else "1.1",
    )


def _write_adapter(run: RunDirectory, state: TrainState, info: AdapterInfo, card: str) -> None:
    """Take the adapter of the best checkpoint, or of the last where nothing was scored."""
    checkpoint = checkpoint_folder(run.checkpoints, state.best.step if state.best else state.step)
    check_whole(checkpoint)
    with replacing_folder(run.adapter) as folder:
        shutil.copytree(checkpoint / ADAPTER, folder, dirs_exist_ok=True)
        write_adapter_info(folder, info)
        write_text(folder / CARD, card)
