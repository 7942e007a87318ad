"""Once the adapter is written: calibrate it on held-out questions, and report its answers."""

import gc
import logging
from dataclasses import replace

from loraqa.analysis.outcome import FILE, Outcome
from loraqa.answer.calibrate import calibrate, keep_calibration
from loraqa.answer.evaluate import evaluate
from loraqa.answer.outcome import outcome_of
from loraqa.answer.reader import Reader as PlainReader
from loraqa.errors import counted
from loraqa.finetuning.reading import SCORING, SCORING_BATCH_FACTOR
from loraqa.reader import Reader
from loraqa.report.progress import answering_progress
from loraqa.report.run import keep_outcome, rewrite_report
from loraqa.squad import QADataset
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings

logger = logging.getLogger("loraqa")


def calibrate_and_report(
    run: RunDirectory,
    settings: RunSettings,
    held_out: QADataset,
    sample: QADataset | None,
    command: str,
) -> None:
    """Calibrate the adapter of a run, and write the report of the run.

    Args:
        run: the run; its adapter is written.
        settings: its settings.
        held_out: the questions to calibrate on; there may be none.
        sample: the dev questions whose answers are reported; None without dev data.
        command: the command that made the run.

    Raises:
        LoraqaError: the model does not fit into memory.
        OSError: a file cannot be written.
    """
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
    fitting = SCORING_BATCH_FACTOR * settings.optimisation.tokens_per_batch
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
    keep_calibration(calibrated, run.adapter)
    return calibrated


def _examine(reader: PlainReader, sample: QADataset, run: RunDirectory, command: str) -> Outcome:
    """Answer the dev sample once more, for the report."""
    asked = counted(len(sample.order), "question")
    logger.info("Answering %s of the dev data for the report.", asked)
    with answering_progress() as progress:
        found = evaluate(reader, sample, SCORING, progress=progress)
    return outcome_of(found, sample, model=run.path, strategy=SCORING.name, command=command)
