"""The recipe: read → load → encode → adapt → train and score → the adapter, ready to answer.

settings = load_settings([Path("squad.yaml")], ["data.dev=dev.json"])
result = finetune(settings, Path("runs/squad"))
Reader.load("runs/squad").answer(context, questions)
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from loraqa.answer.evaluate import evaluate, sample_questions
from loraqa.answer.reader import Reader
from loraqa.errors import InputError, some_of
from loraqa.files import replacing_folder, write_text
from loraqa.lora.adapt import adapt, parameter_counts
from loraqa.lora.adapter import load_adapter
from loraqa.model.choose import choose_runner
from loraqa.model.gelu import compiled_gelu
from loraqa.model.load import load_base
from loraqa.model.source import choose_max_length
from loraqa.prompt.cache import encode_training_once
from loraqa.prompt.encode import Encoded, EncodingCounts, PromptEncoder
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.report.progress import training_progress
from loraqa.squad import QADataset, Scores, read_passages
from loraqa.train.adapter_folder import (
    CARD,
    AdapterInfo,
    BaseInfo,
    describe_base,
    model_card,
    write_adapter_info,
)
from loraqa.train.checkpoint import (
    ADAPTER,
    Evaluation,
    TrainState,
    check_whole,
    checkpoint_folder,
    newest_whole,
    step_of,
)
from loraqa.train.environment import environment
from loraqa.train.loop import train
from loraqa.train.run import RunDirectory
from loraqa.train.schedule import total_steps
from loraqa.train.settings import DataSettings, RunSettings

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
) -> FinetuneResult:
    """Fine-tune a model as `settings` say, in the folder `run_dir`.

    Args:
        settings: of the run; on resuming, those that it began with.
        run_dir: new or empty; on resuming, that of the run.
        resume: go on from the newest whole checkpoint.
        command: what made the run, for its model card.

    Raises:
        InputError: settings, data, model or folder cannot be used; nothing was trained.
        StoppedError: Ctrl-C or SIGTERM; a checkpoint of where it stood is written.
        LoraqaError: the model does not fit into memory, or the training failed; its checkpoints
            are whole.
    """
    settings = settings.with_full_paths()
    run = RunDirectory(run_dir)
    run.check_usable(settings, resume)
    data = _read_data(settings.data)
    model, tokenizer = load_base(**settings.model.model_dump())
    reader = _reader(settings, model, SegmentTokenizer(tokenizer), data["train"])
    encoded = _encode(reader, data["train"])
    checkpoint = newest_whole(run.checkpoints)
    _put_in_adapter(model, settings, checkpoint)
    base = describe_base(settings.model, model)
    facts = {"base": base.model_dump(), **_data_facts(data, encoded.counts)}
    plan = _plan(settings, encoded, reader)
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
            evaluate=_scorer(settings, reader, data.get("dev")),
            report=report,
        )
    info = _adapter_info(reader, base)
    card = model_card(info, settings, state, facts, command)
    _write_adapter(run, state, info, card)
    return FinetuneResult(
        run=run.path,
        steps=state.step,
        before=state.baseline,
        after=state.best,
        training_seconds=state.training_seconds,
        evaluation_seconds=state.evaluation_seconds,
    )


def _read_data(settings: DataSettings) -> dict[str, QADataset]:
    data = {"train": read_passages(settings.train, on_bad=settings.on_bad, split="train")}
    if settings.dev is not None:
        data["dev"] = read_passages(settings.dev, on_bad=settings.on_bad)
    return data


def _reader(
    settings: RunSettings, model: PreTrainedModel, tokenizer: SegmentTokenizer, data: QADataset
) -> Reader:
    """The model, and how questions are put to it, in training as in answering."""
    max_length = choose_max_length(settings.prompt.max_length, model.config)
    return Reader(
        choose_runner(model, max_length, training=True),
        tokenizer,
        Template(settings.prompt.template),
        max_length,
        settings.prompt.stride,
        settings.evaluation.max_answer_tokens,
        no_answer=not all(question.answerable for question in data.questions),
        tokens_per_batch=_WITHOUT_GRADIENTS * settings.optimisation.tokens_per_batch,
    )


def _encode(reader: Reader, data: QADataset) -> Encoded:
    encoder = PromptEncoder(reader.tokenizer, reader.template, reader.max_length, reader.stride)
    encoded = encode_training_once(encoder, data)
    counts = encoded.counts
    logger.info(
        f"Training on {counts.questions:,} questions on {counts.passages:,} contexts of "
        f"{data.source}: {counts.tree_tokens:,} tokens as trees, {counts.separate_tokens:,} as "
        "separate examples."
    )
    if counts.windowed:
        logger.warning(
            f"{counts.windowed:,} contexts are longer than {reader.max_length} tokens allow and "
            f"are read in windows: {counts.left_out:,} examples whose window holds no answer are "
            f"left out, {counts.not_here:,} are trained to say so."
        )
    if counts.skipped:
        logger.warning(
            f"{len(counts.skipped):,} questions are skipped, for no window holds their whole "
            f"answer: {some_of(counts.skipped)}."
        )
    if not encoded.trees:
        raise InputError(f"{data.source} holds no question to train on.")
    return encoded


def _put_in_adapter(model: PreTrainedModel, settings: RunSettings, checkpoint: Path | None) -> None:
    if checkpoint is None:
        adapt(model, settings.lora, settings.seed)
    else:
        logger.info("Going on from %s.", checkpoint)
        load_adapter(model, checkpoint / ADAPTER)
    logger.info("%s.", parameter_counts(model))


def _data_facts(data: Mapping[str, QADataset], counts: EncodingCounts) -> dict[str, Any]:
    """Source, fingerprint and counts of each part."""
    facts = {
        name: {"source": part.source, "version": part.version, "sha256": part.fingerprint}
        | part.counts()
        for name, part in data.items()
    }
    facts["train"]["encoding"] = counts.to_json()
    return facts


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
    sample = sample_questions(data.passages, count, settings.seed)
    version = data.version
    return lambda: evaluate(reader, sample, version).scores


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
