"""The recipe of fine-tuning: read and encode, load, adapt, train and score, write the adapter,
calibrate it, and report its answers.

settings = load_settings([Path("squad.yaml")], ["data.dev=dev.json"])
result = finetune(settings, Path("runs/squad"))
Reader.load("runs/squad").answer(context, questions)
"""

import gc
import logging
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel

from loraqa.adapter.base import describe_base
from loraqa.adapter.card import CARD, model_card
from loraqa.adapter.evaluation import Evaluation
from loraqa.adapter.find import adapter_of
from loraqa.adapter.info import AdapterInfo, BaseInfo, read_adapter_info, write_adapter_info
from loraqa.analysis.outcome import FILE, Outcome
from loraqa.answer.calibrate import calibrate
from loraqa.answer.evaluate import evaluate, sample_questions
from loraqa.answer.outcome import outcome_of
from loraqa.answer.reader import Reader as PlainReader
from loraqa.answer.span import SpanSearch
from loraqa.answer.together import SharedScoring
from loraqa.distributed.launch import tell_how_to_use_all
from loraqa.distributed.ranks import ALONE, Ranks
from loraqa.errors import InputError, counted, some_of
from loraqa.files import read_json, replacing_folder, write_text
from loraqa.lora.adapt import adapt, parameter_counts, resume_pissa
from loraqa.lora.adapter import load_adapter
from loraqa.lora.start import start_from
from loraqa.model.choose import choose_runner
from loraqa.model.load import check_vocabulary, load_model
from loraqa.model.runner import Runner, Use
from loraqa.model.source import choose_max_length
from loraqa.prompt.defaults import ANSWERS_THAT_FIT, DEFAULT_MAX_ANSWER_TOKENS
from loraqa.prompt.encode import Encoded, PromptEncoder
from loraqa.prompt.invocation import invocation_of_questions
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.reader import Reader
from loraqa.report.progress import answering_progress, no_progress, training_progress
from loraqa.report.run import keep_outcome, rewrite_report
from loraqa.report.time_left import Work
from loraqa.speed.kept import keep_trunks
from loraqa.speed.start import accelerated_preparation
from loraqa.speed.trial import fastest
from loraqa.squad import Overlap, QADataset, overlap, read_passages
from loraqa.train.checkpoint import TrainState
from loraqa.train.data import TrainingData, describe, without_answer
from loraqa.train.environment import environment
from loraqa.train.loop import train
from loraqa.train.manifest import ADAPTER, check_whole, checkpoint_folder, newest_whole, step_of
from loraqa.train.run import Record, RunDirectory, check_same, warn_of_other_accelerations
from loraqa.train.schedule import FEWEST_EPOCHS, scoring_steps, total_epochs, total_steps
from loraqa.train.settings import (
    DataSettings,
    ModelSettings,
    OptimisationSettings,
    RunSettings,
)
from loraqa.train.start import check_base, fingerprint

logger = logging.getLogger("loraqa")

# A fine-tuned model needs about five paths for a question, and hardly ever more than 32. A model
# that has learned nothing needs hundreds, and its score is not worth so much.
SCORING = SpanSearch(most_paths=32)
"""How answers are found that are scored during a training."""

# The threshold on the probability of "no answer" until a better one is found.
_EVEN = 0.5

# Lengths of texts, in tokens, that a model can read whatever its training data were. Longer texts
# are read in windows that are as long as nearly all contexts of the training.
_ANY_LENGTH = 512
_USUAL = 0.95

# Scoring keeps only keys and values, so its batches can be four times larger than in training.
_SCORING_BATCH_FACTOR = 4


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
    report: Callable[[Record], None] = lambda _: None,
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
        report: called with every record of the metrics; what it raises ends the training.
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
            settings, run, resume, command, prepare, change, report, ranks
        )
        finish = partial(_calibrate_and_report, run, settings, held_out, sample, command)
        ranks.of_first(finish, "rank 0 to calibrate and to write the report")
    return result


def _finetune(
    settings: RunSettings,
    run: RunDirectory,
    resume: bool,
    command: str,
    prepare: Callable[[RunSettings], TrainingData] | None,
    change: Callable[[Runner, SegmentTokenizer], Runner] | None,
    report: Callable[[Record], None],
    ranks: Ranks,
) -> tuple[FinetuneResult, QADataset, QADataset | None]:
    """Train, and write the adapter. Return the held-out questions and the dev sample, too."""
    checkpoint = newest_whole(run.checkpoints) if ranks.is_first else None
    ready = get_ready(settings, checkpoint, prepare, change, ranks=ranks)
    training, reader, model = ready.training, ready.reader, ready.runner.model
    facts = {
        "base": ready.base.model_dump(),
        "train": training.facts,
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

    done = step_of(checkpoint)
    shown = training_progress(ready.work, done) if ranks.is_first else no_progress()
    with shown as progress:

        def show_and_report(record: Record) -> None:
            progress.record(record)
            report(record)

        scoring = None
        if ready.sample is not None:
            scoring = SharedScoring(reader, ready.sample, SCORING, ranks, progress.scoring)
        state = train(
            ready.runner,
            ready.plan,
            settings,
            run,
            checkpoint=checkpoint,
            evaluate=scoring.answer if scoring else None,
            report=show_and_report,
            ranks=ranks,
            merge=scoring.merge if scoring else None,
        )
    if ranks.is_first:
        info = _adapter_info(reader, ready.base)
        card = _card(info, settings, state, training.facts, ready.shared, command)
        _write_adapter(run, state, info, card)
    result = FinetuneResult(
        run=run.path,
        steps=state.step,
        before=state.baseline,
        after=state.best,
        training_seconds=state.training_seconds,
        evaluation_seconds=state.evaluation_seconds,
    )
    return result, training.held_out, ready.sample


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

    _report_training(training, max_length)
    check_vocabulary(training.tokenizer, model)
    plan = _plan(settings, training.encoded, runner)
    _report_epochs(plan, settings.optimisation)
    base = _describe_base(settings.model, model, training)
    if settings.lora.start and checkpoint is None and ranks.is_first:
        check_base(settings.lora.start, base)
    return Ready(
        training,
        dev,
        sample,
        runner,
        accelerations,
        _reader(settings, runner, max_length, training),
        plan,
        _work(settings, plan, training.held_out, sample),
        base,
        _find_overlap(training, dev),
    )


def _calibrate_and_report(
    run: RunDirectory,
    settings: RunSettings,
    held_out: QADataset,
    sample: QADataset | None,
    command: str,
) -> None:
    examined = None
    if held_out.order or sample is not None:
        examined = _calibrate_and_examine(run, settings, held_out, sample, command)
    if examined is None:
        rewrite_report(run.path)
    else:
        keep_outcome(examined, run.path)


def _calibrate_and_examine(
    run: RunDirectory,
    settings: RunSettings,
    held_out: QADataset,
    sample: QADataset | None,
    command: str,
) -> Outcome | None:
    """Calibrate the run on held-out questions, and examine its answers to the dev sample.

    A run that has another evaluation keeps it, and the result is None. The adapter is read as it
    will be used, and is there whatever happens here.
    """
    # The model that was trained is not needed any more, and may take all memory.
    gc.collect()
    loaded = Reader.load(run.path, device=settings.model.device, without=settings.speed.without)
    fitting = _SCORING_BATCH_FACTOR * settings.optimisation.tokens_per_batch
    reader: PlainReader = replace(loaded, tokens_per_batch=min(fitting, loaded.tokens_per_batch))
    if held_out.order:
        reader = _calibrated(reader, held_out, settings, run)
    if sample is None or _evaluated_otherwise(run, sample):
        return None
    return _examine(reader, sample, run, command)


def _evaluated_otherwise(run: RunDirectory, sample: QADataset) -> bool:
    """Return whether the run, which was done before, has an evaluation of other data."""
    if not (run.path / FILE).exists():
        return False
    return bool(Outcome.load(run.path).data["sha256"] != sample.fingerprint)


def _calibrated(
    reader: PlainReader, held_out: QADataset, settings: RunSettings, run: RunDirectory
) -> PlainReader:
    """Learn from questions that were held out how far answers can be trusted."""
    logger.info("Calibrating on %s that were held out.", counted(len(held_out.order), "question"))
    with answering_progress() as progress:
        calibrated = calibrate(
            reader, held_out, settings.data.negatives, settings.seed, progress=progress
        )
    learned = {
        "no_answer_threshold": calibrated.no_answer_threshold,
        "calibration": calibrated.calibration,
    }
    info = read_adapter_info(run.adapter)
    write_adapter_info(run.adapter, info.model_copy(update=learned))
    return calibrated


def _examine(reader: PlainReader, sample: QADataset, run: RunDirectory, command: str) -> Outcome:
    """Answer the dev sample once more, for the report."""
    asked = counted(len(sample.order), "question")
    logger.info("Answering %s of the dev data for the report.", asked)
    with answering_progress() as progress:
        found = evaluate(reader, sample, SCORING, progress=progress)
    return outcome_of(found, sample, model=run.path, strategy=SCORING.name, command=command)


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


def _report_training(training: TrainingData, max_length: int) -> None:
    """Log what the run learns from. Raises `InputError` if there is nothing to learn from."""
    source, counts = training.facts["source"], training.encoded.counts
    negatives, held_out = training.facts["negatives"], training.facts["held_out"]
    logger.info(
        f"Training on {counted(counts.questions - negatives, 'question')} on "
        f"{counted(counts.passages, 'context')} of {source}: {counts.tree_tokens:,} tokens as "
        f"trees, {counts.separate_tokens:,} as separate examples."
    )
    if told := without_answer(training.facts):
        better = ", or above what is best on the held-out questions" if held_out else ""
        logger.info(
            f'{told}, so the run learns to say "no answer", and says it where its probability is '
            f"above {_EVEN:g}{better}; give them answers, or leave them out, if that is not meant."
        )
    if negatives:
        logger.info(
            f"To learn when a text holds no answer, {negatives:,} of the questions are asked on "
            "another context, too (data.negatives)."
        )
    if held_out:
        logger.info(
            f"To learn how far answers can be trusted, {held_out:,} questions are held out "
            "(data.held_out)."
        )
    if counts.windowed:
        are = "is" if counts.windowed == 1 else "are"
        logger.warning(
            f"{counted(counts.windowed, 'context')} {are} too long for {max_length:,} tokens and "
            f"read in windows. Examples whose window lacks the answer: "
            f"{counts.left_out:,} left out, {counts.not_here:,} trained as unanswerable."
        )
    if counts.skipped:
        logger.warning(
            f"Skipped, because no window holds the whole answer: "
            f"{counted(len(counts.skipped), 'question')} ({some_of(counts.skipped)})."
        )
    if not training.encoded.trees:
        raise InputError(f"{source} holds no question to train on.")


def _report_epochs(plan: BatchPlan, settings: OptimisationSettings) -> None:
    """Log that questions are seen more often than usual, or that `max_steps` is out of reach."""
    epochs, most = total_epochs(plan, settings), settings.max_steps
    if settings.epochs is None:
        if epochs > FEWEST_EPOCHS:
            why = "So few" if most is None else f"To make optimisation.max_steps={most},"
            logger.info(f"{why} questions are seen up to {epochs} times (optimisation.epochs).")
    elif most is not None and (steps := total_steps(plan, settings)) < most:
        logger.warning(
            f"The run ends after {counted(steps, 'step')}, before optimisation.max_steps={most}, "
            f"because of optimisation.epochs={epochs}; leave the epochs out to make all steps."
        )


def _find_overlap(training: TrainingData, dev: QADataset | None) -> Overlap | None:
    """Return what dev data share with the training data, and warn of it; None without dev data."""
    shared = None if dev is None else overlap(training.seen, dev)
    if shared:
        logger.warning(f"{shared}: the scores are higher than on new texts.")
    return shared


def _reader(
    settings: RunSettings, runner: Runner, max_length: int, training: TrainingData
) -> Reader:
    """Return a reader that writes prompts as in training."""
    encoded, template = training.encoded, Template(settings.prompt.template)
    longest = settings.evaluation.max_answer_tokens or _longest_answer(encoded, max_length)
    return Reader(
        runner,
        training.tokenizer,
        template,
        min(max_length, _longest_path(encoded) + longest),
        settings.prompt.stride,
        _usual_context(encoded, template),
        max_answer_tokens=longest,
        learned_no_answer=_learns_no_answer(encoded),
        no_answer_threshold=_EVEN if training.facts["unanswerable"] else None,
        tokens_per_batch=_SCORING_BATCH_FACTOR * settings.optimisation.tokens_per_batch,
    )


def _longest_path(encoded: Encoded) -> int:
    """Return how long the longest prompt with its answer is, but no less than any base can read."""
    paths = (len(tree.trunk) + max(map(len, tree.branches)) for tree in encoded.trees)
    return max(*paths, _ANY_LENGTH)


def _usual_context(encoded: Encoded, template: Template) -> int:
    """Return a length that few of the contexts exceed."""
    copies = 1 if template.between_contexts is None else 2
    lengths = sorted(len(tree.trunk) // copies for tree in encoded.trees)
    return max(lengths[math.ceil(_USUAL * len(lengths)) - 1], _ANY_LENGTH // 2)


def _learns_no_answer(encoded: Encoded) -> bool:
    # "No answer" is one token.
    return any(len(branch.answer) == 1 for tree in encoded.trees for branch in tree.branches)


def _longest_answer(encoded: Encoded, max_length: int) -> int:
    """Return how many tokens an answer may have by default, its end included.

    With an English tokenizer a Chinese or Thai character takes two or three tokens. Answers never
    take more than a quarter of the longest path, so that contexts have room.
    """
    answers = (branch.answer for tree in encoded.trees for branch in tree.branches)
    # "No answer" is one token.
    lengths = sorted(len(answer) for answer in answers if len(answer) > 1) or [1]
    needed = lengths[math.ceil(ANSWERS_THAT_FIT * len(lengths)) - 1]
    return max(DEFAULT_MAX_ANSWER_TOKENS, min(needed, max_length // 4))


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


def _card(
    info: AdapterInfo,
    settings: RunSettings,
    state: TrainState,
    data: Mapping[str, Any],
    shared: Overlap | None,
    command: str,
) -> str:
    return model_card(
        info,
        before=state.baseline,
        after=state.best,
        strategy=SCORING.name,
        steps=state.step,
        training_seconds=state.training_seconds,
        data=data,
        shared=shared,
        command=command,
        settings_yaml=settings.to_yaml(),
    )


def _write_adapter(run: RunDirectory, state: TrainState, info: AdapterInfo, card: str) -> None:
    """Write the adapter of the best checkpoint; of the last one if nothing was scored."""
    checkpoint = checkpoint_folder(run.checkpoints, state.best.step if state.best else state.step)
    check_whole(checkpoint)
    with replacing_folder(run.adapter) as folder:
        shutil.copytree(checkpoint / ADAPTER, folder, dirs_exist_ok=True)
        write_adapter_info(folder, info)
        write_text(folder / CARD, card)


class _Recipe(ModuleType):
    """This module, which can be called like its function.

    `from loraqa import finetune` gives the module, because Python sets a package's attributes to
    its modules.
    """

    __call__ = staticmethod(finetune)


sys.modules[__name__].__class__ = _Recipe
