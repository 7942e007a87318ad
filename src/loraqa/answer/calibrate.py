"""Learn from held-out questions how far answers can be trusted, and when to say "no answer"."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraqa.adapter.info import Calibration, read_adapter_info, write_adapter_info
from loraqa.answer.answered import Answered
from loraqa.answer.confidence import fit_beta
from loraqa.answer.evaluate import best_of
from loraqa.answer.journal import Journal
from loraqa.answer.progress import Progress
from loraqa.answer.reader import Reader, with_close_bounds
from loraqa.answer.span import SpanSearch
from loraqa.squad import QADataset, Question, QuestionScore, score
from loraqa.squad.negatives import with_negatives


def calibrate(
    reader: Reader,
    held_out: QADataset,
    negatives: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Reader:
    """Return the reader with a calibration and, for SQuAD v2.0, with the best threshold.

    The threshold is the one with the best F1 on the held-out questions. Where all answers are right
    or all are wrong, nothing can be fitted, and the calibration is None.

    Args:
        reader: the model.
        held_out: questions that it was not trained on.
        negatives: which share of them is asked on a context without their answer, too, where every
            answer is wrong. Otherwise the confidence in answers from such contexts is a guess.
        seed: random seed of their choice.
        progress: called with the number of questions answered so far.
        journal: keeps the answers on disk as they come.

    Raises:
        InputError, LoraqaError: as for `Reader.read`.
    """
    candid = replace(reader, no_answer_threshold=None)
    asked = with_negatives(held_out, negatives, seed)
    search = with_close_bounds(SpanSearch())
    read = candid.read(asked.passages, search, progress=progress, journal=journal)
    answers = [best for best, *_ in read]
    ids = frozenset(held_out.order)
    own = [answer for answer in answers if answer.question_id in ids]
    if best := best_of(own, held_out):
        reader = replace(reader, no_answer_threshold=best.f1_threshold)
    return replace(reader, calibration=_calibration(answers, held_out))


def keep_calibration(reader: Reader, folder: Path) -> None:
    """Write the calibration and the threshold of a reader into the `loraqa.json` of its folder.

    Raises:
        InputError: as for `read_adapter_info`.
        OSError: the file cannot be written.
    """
    learned = {
        "no_answer_threshold": reader.no_answer_threshold,
        "calibration": reader.calibration,
    }
    write_adapter_info(folder, read_adapter_info(folder).model_copy(update=learned))


def _calibration(answers: Sequence[Answered], held_out: QADataset) -> Calibration | None:
    """Fit confidence; an answer to another question than the held-out ones is wrong."""
    questions = {question.id: question for question in held_out.questions}
    predictions = {
        answer.question_id: answer.text for answer in answers if answer.question_id in questions
    }
    scores = score(predictions, held_out).by_question
    # A context that is one long word has no span, and its question no share.
    known = [(answer, own) for answer in answers if (own := answer.span_probability) is not None]
    asked = [questions.get(answer.question_id) for answer, _ in known]
    right = [0.0 if each is None else _right(each, scores[each.id]) for each in asked]
    fitted = fit_beta([own for _, own in known], right)
    if fitted is None:
        return None
    no_answer = fit_beta(
        [answer.no_answer_probability for answer, _ in known],
        [float(each is None or not each.answerable) for each in asked],
    )
    return Calibration(answer=fitted, no_answer=no_answer, questions=len(answers))


def _right(question: Question, score: QuestionScore) -> float:
    """Return how right an answer is, from 0 to 1.

    Annotators cut answers differently. Where there is only one of them, an answer that shares words
    with theirs is what another one might have given, nearly as often as its F1 says.
    """
    return score.f1 if len(question.golds) == 1 else score.exact_match
