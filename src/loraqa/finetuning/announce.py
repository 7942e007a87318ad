"""What a training says of its data and of its length before it begins."""

import logging

from loraqa.errors import InputError, counted, some_of
from loraqa.finetuning.reading import EVEN
from loraqa.prompt.plan import BatchPlan
from loraqa.train.data import TrainingData, without_answer
from loraqa.train.schedule import FEWEST_EPOCHS, total_epochs, total_steps
from loraqa.train.settings import OptimisationSettings

logger = logging.getLogger("loraqa")


def report_training(training: TrainingData, max_length: int) -> None:
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
            f"above {EVEN:g}{better}; give them answers, or leave them out, if that is not meant."
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
    else:
        logger.info(
            "No questions are held out (data.held_out; of fewer than 500 none are), so answers "
            "will have no confidence, but the model's own probability, which may be far too high. "
            "`loraqa calibrate` learns it later from questions that are not in the training data."
        )
    if counts.windowed:
        are = "is" if counts.windowed == 1 else "are"
        logger.warning(
            f"{counted(counts.windowed, 'context')} {are} too long for {max_length:,} tokens "
            "(prompt.max_length) and read in windows. Examples whose window lacks the answer: "
            f"{counts.left_out:,} left out, {counts.not_here:,} trained as unanswerable."
        )
    if counts.skipped:
        logger.warning(
            f"Skipped, because no window holds the whole answer: "
            f"{counted(len(counts.skipped), 'question')} ({some_of(counts.skipped)})."
        )
    if not training.encoded.trees:
        raise InputError(f"{source} holds no question to train on.")


def report_epochs(plan: BatchPlan, settings: OptimisationSettings) -> None:
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
