"""Make of an evaluation what reports and comparisons need, and no model."""

from pathlib import Path
from typing import Any

from loraqa.adapter.base import weights_hash
from loraqa.adapter.find import find_adapter
from loraqa.adapter.info import INFO, read_adapter_info
from loraqa.analysis.outcome import Asked, Candidate, Outcome, golds_of
from loraqa.answer.answered import Answered
from loraqa.answer.evaluate import Evaluated
from loraqa.squad import QADataset, Question


def outcome_of(
    evaluated: Evaluated, dataset: QADataset, *, model: Path, strategy: str, command: str
) -> Outcome:
    """Return the outcome of an evaluation.

    Args:
        evaluated: the answers to `dataset`.
        dataset: the questions.
        model: the run, adapter or model that answered.
        strategy: name of the decoding strategy.
        command: the command that answered.
    """
    found = {candidates[0].question_id: candidates for candidates in evaluated.candidates}
    questions = (
        _asked(number, question, found[question.id], evaluated)
        for number, passage in enumerate(dataset.passages)
        for question in passage.questions
    )
    return Outcome(
        command=command,
        model=str(model),
        base=_base_of(model),
        data={
            "source": dataset.source,
            "version": dataset.version,
            "sha256": dataset.fingerprint,
            **dataset.counts(),
        },
        strategy=strategy,
        scores=evaluated.to_json(),
        contexts=tuple(passage.context for passage in dataset.passages),
        questions=tuple(questions),
    )


def _asked(
    context: int, question: Question, candidates: tuple[Answered, ...], evaluated: Evaluated
) -> Asked:
    score = evaluated.scores.by_question[question.id]
    return Asked(
        id=question.id,
        context=context,
        question=question.text,
        golds=golds_of(question),
        candidates=tuple(map(_candidate, candidates)),
        no_answer_probability=candidates[0].no_answer_probability,
        exact_match=score.exact_match,
        f1=score.f1,
    )


def _candidate(answer: Answered) -> Candidate:
    return Candidate(
        answer.text, answer.start, answer.end, answer.log_probability, answer.confidence
    )


def _base_of(model: Path) -> dict[str, Any]:
    """Return what is known of the base model; nothing if the adapter is not loraqa's."""
    adapter = find_adapter(model.expanduser())
    if adapter is None:
        return {"source": str(model), "sha256": weights_hash(model)}
    return read_adapter_info(adapter).base.model_dump() if (adapter / INFO).exists() else {}
