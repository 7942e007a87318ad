"""Get ready to train: read and encode the data, load and adapt the model, plan the steps."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from loraqa.adapter.base import describe_base
from loraqa.adapter.find import adapter_of
from loraqa.adapter.info import BaseInfo
from loraqa.answer.evaluate import sample_questions
from loraqa.distributed.ranks import ALONE, Ranks
from loraqa.errors import InputError
from loraqa.files import read_json
from loraqa.finetuning.announce import report_epochs, report_training
from loraqa.finetuning.reading import reader_of
from loraqa.lora.adapt import adapt, parameter_counts, resume_pissa
from loraqa.lora.adapter import load_adapter
from loraqa.lora.start import start_from
from loraqa.model.choose import choose_runner
from loraqa.model.load import check_vocabulary, load_model
from loraqa.model.runner import Runner, Use
from loraqa.model.source import choose_max_length
from loraqa.prompt.encode import Encoded, PromptEncoder
from loraqa.prompt.invocation import invocation_of_questions
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.reader import Reader
from loraqa.report.time_left import Work
from loraqa.speed.kept import keep_trunks
from loraqa.speed.start import accelerated_preparation
from loraqa.speed.trial import fastest
from loraqa.squad import Overlap, QADataset, overlap, read_passages
from loraqa.train.data import TrainingData
from loraqa.train.manifest import ADAPTER
from loraqa.train.run import RunDirectory
from loraqa.train.schedule import scoring_steps, total_steps
from loraqa.train.settings import (
    DataSettings,
    ModelSettings,
    RunSettings,
)
from loraqa.train.start import check_base

logger = logging.getLogger("loraqa")


@dataclass(frozen=True)
class Ready:
    """What a training needs before its first step.

    Attributes:
        training, dev: the data.
        sample: the part of the dev data that is scored.
        runner, accelerations: computes the adapted model; how it is made faster.
        reader: answers with the model.
        plan, work: the steps, and all that there is to do.
        base: describes the base model.
        shared: what training and dev data have in common.
    """

    training: TrainingData
    dev: QADataset | None
    sample: QADataset | None
    runner: Runner
    accelerations: tuple[str, ...]
    reader: Reader
    plan: BatchPlan
    work: Work
    base: BaseInfo
    shared: Overlap | None


def get_ready(
    settings: RunSettings,
    checkpoint: Path | None = None,
    prepare: Callable[[RunSettings], TrainingData] | None = None,
    change: Callable[[Runner, SegmentTokenizer], Runner] | None = None,
    choose_weights: Callable[[PreTrainedModel], None] | None = None,
    ranks: Ranks = ALONE,
) -> Ready:
    """Read, check and encode the data, and load and adapt the model. Nothing is written to a run.

    Arguments and errors are those of `finetune`; `checkpoint` holds the adapter to go on with.
    An experiment that trains no LoRA instead freezes what it does not train with `choose_weights`.
    """
    prepare = prepare or accelerated_preparation(settings.speed.without)
    training, dev = prepare(settings), _read_dev(settings.data)
    sample = dev and _sample(dev, settings)

    device = ranks.device(settings.model.device)
    model = load_model(**settings.model.model_dump() | {"device": device})
    max_length = choose_max_length(settings.prompt.max_length, model.config)
    if choose_weights is None:
        invocation = _invocation(settings, training, max_length)
        _put_in_adapter(model, settings, checkpoint, invocation, ranks)
    else:
        choose_weights(model)
    runner, accelerations = _runner(
        model, max_length, settings, answering=dev is not None, sharers=ranks.on_machine
    )
    if change is not None:
        runner = change(runner, training.tokenizer)

    report_training(training, max_length)
    check_vocabulary(training.tokenizer, model)
    plan = _plan(settings, training.encoded, runner)
    report_epochs(plan, settings.optimisation)
    base = _describe_base(settings.model, model, training)
    if settings.lora.start and checkpoint is None and ranks.is_first:
        check_base(settings.lora.start, base)
    return Ready(
        training,
        dev,
        sample,
        runner,
        accelerations,
        reader_of(settings, runner, max_length, training),
        plan,
        _work(settings, plan, training.held_out, sample),
        base,
        _find_overlap(training, dev),
    )


def _read_dev(settings: DataSettings) -> QADataset | None:
    return read_passages(settings.dev, on_bad=settings.on_bad) if settings.dev is not None else None


def _invocation(settings: RunSettings, training: TrainingData, max_length: int) -> list[int]:
    """Return the ids from which an activated LoRA acts; none for another LoRA."""
    if not settings.lora.activated:
        return []
    template = Template(settings.prompt.template)
    encoder = PromptEncoder(training.tokenizer, template, max_length, settings.prompt.stride)
    return invocation_of_questions(encoder)


def _put_in_adapter(
    model: PreTrainedModel,
    settings: RunSettings,
    checkpoint: Path | None,
    invocation: Sequence[int],
    ranks: Ranks,
) -> None:
    lora = settings.lora
    if checkpoint is not None:
        logger.info("Going on from %s.", checkpoint)
        _load_from(checkpoint, model, settings.model.source)
        if lora.initialisation == "pissa":
            resume_pissa(model, lora)
    elif lora.start and ranks.is_first:
        # The others receive its weights.
        logger.info("Starting with the weights of the adapter in %s.", lora.start)
        start_from(model, adapter_of(lora.start), lora, invocation)
    else:
        if lora.initialisation == "pissa":
            logger.info("Splitting the weights, which takes some seconds for each large layer.")
        adapt(model, lora, settings.seed, invocation)
    logger.info("%s.", parameter_counts(model))


def _load_from(checkpoint: Path, model: PreTrainedModel, source: str) -> None:
    """Put the adapter of a checkpoint into a model.

    Raises:
        InputError: the run began with another model.
    """
    try:
        load_adapter(model, checkpoint / ADAPTER)
    except InputError as error:
        # The checkpoint is whole, and holds copies of the run's files.
        began = read_json(RunDirectory(checkpoint).data_file)["base"]["source"]
        which = f"{began}, as it was then" if began == source else began
        raise InputError(
            f"{source} is not the model with which the run began, which is {which}: resume with "
            "that one (leave --model out), or start a new run in another folder."
        ) from error


def _runner(
    model: PreTrainedModel,
    max_length: int,
    settings: RunSettings,
    *,
    answering: bool,
    sharers: int,
) -> tuple[Runner, tuple[str, ...]]:
    """Return the fastest runner of a model, and the names of its accelerations."""
    plain = choose_runner(model, max_length, answering=answering)
    uses: list[Use] = ["training", "answering"] if answering else ["training"]
    runner, accelerations = fastest(plain, uses, settings.speed.without)
    return keep_trunks(runner, settings.speed.kept_trunks, sharers), accelerations


def _find_overlap(training: TrainingData, dev: QADataset | None) -> Overlap | None:
    """Return what dev data share with the training data, and warn of it; None without dev data."""
    shared = None if dev is None else overlap(training.seen, dev)
    if shared:
        logger.warning(f"{shared}: the scores are higher than on new texts.")
    return shared


def _plan(settings: RunSettings, encoded: Encoded, runner: Runner) -> BatchPlan:
    options = settings.optimisation
    return BatchPlan(
        encoded.trees,
        options.questions_per_step,
        options.tokens_per_batch,
        settings.seed,
        runner.size,
    )


def _work(
    settings: RunSettings, plan: BatchPlan, held_out: QADataset, sample: QADataset | None
) -> Work:
    """Return what there is to do, to estimate the time that it takes."""
    steps, tokens = total_steps(plan, settings.optimisation), plan.tokens_per_step()
    calibrated = round(len(held_out.order) * (1 + settings.data.negatives))
    if sample is None:
        return Work(steps, tokens, answered_after=calibrated)
    scorings = scoring_steps(steps, settings.evaluation)
    return Work(steps, tokens, scorings, calibrated + len(sample.order))


def _describe_base(
    settings: ModelSettings, model: PreTrainedModel, training: TrainingData
) -> BaseInfo:
    return describe_base(
        settings.source,
        model,
        training.tokenizer,
        revision=settings.revision,
        random_weights=settings.random_weights,
        weights=training.base_sha256,
    )


def _sample(dev: QADataset, settings: RunSettings) -> QADataset:
    count = settings.evaluation.questions or len(dev.questions)
    return sample_questions(dev, count, settings.seed)
