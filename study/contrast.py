"""Context-aware contrast: `python -m study.contrast RUN --dev DEV --questions 500`.

Shi et al. (2023, arXiv:2305.14739) subtract what a model would say without the context, so that
what it has read counts more than what it knew before. Of the n best spans of a question the one
with the highest

    (1 + α) ln p(answer | context, question) - α ln p(answer | question)

is chosen. Prints a JSON object for each α: EM and F1, and their change against α = 0, with 95%
intervals.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from loraqa import reader as readers
from loraqa.answer.answered import Answered
from loraqa.answer.reader import Reader
from loraqa.answer.span import SpanSearch
from loraqa.errors import InputError
from loraqa.prompt.tree import Tree
from loraqa.report.progress import answering_progress
from loraqa.squad import Answer, Passage, QADataset, Question, score_question
from study.command import context_numbers, dev_questions, estimates, parser_of, print_parts

Floats = NDArray[np.float64]

_ALPHAS = (0.0, 0.1, 0.25, 0.5, 1.0)
_BEST = 8
# Trees without a context are short.
_TREES_PER_BATCH = 16


def main() -> None:
    """Measure what the command line asks for, and print it."""
    print_parts(_measured, parser_of("study.contrast", __doc__).parse_args())


def _measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    reader = replace(readers.Reader.load(options.run, base=options.base), no_answer_threshold=None)
    data = dev_questions(options)
    with answering_progress() as progress:
        found = reader.read(data.passages, SpanSearch(), answers=_BEST, progress=progress)
    blind = blind_log_probabilities(reader, data.passages, found)
    yield from _by_alpha(data, found, blind)


@torch.no_grad()
def blind_log_probabilities(
    reader: Reader, passages: Sequence[Passage], found: Sequence[Sequence[Answered]]
) -> list[Floats]:
    """Return ln p(answer | question), without the context, of the answers to each question."""
    trees = [_blind(reader, tree) for tree in _trees(reader, passages, found)]
    known: dict[str, float] = {}
    for first in range(0, len(trees), _TREES_PER_BATCH):
        batch = trees[first : first + _TREES_PER_BATCH]
        logits, targets = reader.runner.answer_logits(batch)
        losses = cross_entropy(logits.float(), targets, reduction="none")
        branches = [branch for tree in batch for branch in tree.branches]
        parts = losses.split([len(branch.answer) for branch in branches])
        known |= {b.question_id: -float(p.sum()) for b, p in zip(branches, parts, strict=True)}
    return [
        np.array([known.get(_name(answer, number), 0.0) for number, answer in enumerate(answers)])
        for answers in found
    ]


def _name(answer: Answered, number: int) -> str:
    """Return the id of the question that has this answer alone."""
    return f"{answer.question_id} {number}"


def _trees(
    reader: Reader, passages: Sequence[Passage], found: Sequence[Sequence[Answered]]
) -> list[Tree]:
    """Return a tree for each question, with a branch for each of its answers.

    Its context is replaced by a list of the answers, so that each of them has a place.
    """
    questions = [question for passage in passages for question in passage.questions]
    lists = [
        _list_of_answers(question, answers)
        for question, answers in zip(questions, found, strict=True)
    ]
    return reader.encoder.encode_training(lists).trees


def _list_of_answers(question: Question, answers: Sequence[Answered]) -> Passage:
    texts = [answer.text for answer in answers]
    # A line break stands between two answers.
    starts = [0, *accumulate(len(text) + 1 for text in texts[:-1])]
    asked = (
        Question(_name(answer, number), question.text, (Answer(answer.text, start),))
        for number, (answer, start) in enumerate(zip(answers, starts, strict=True))
        if answer.text
    )
    return Passage("\n".join(texts), tuple(asked))


def _blind(reader: Reader, tree: Tree) -> Tree:
    """Leave the context out of a tree; what the template says before it stays."""
    lead = reader.encoder.template.context("")
    before = [*reader.tokenizer.start, *reader.tokenizer.encode([lead])[0].ids]
    if not before:
        raise InputError("The template begins with the context, so no text without it can be read.")
    return replace(tree, trunk=np.array(before, dtype=tree.trunk.dtype))


def _by_alpha(
    data: QADataset, found: Sequence[Sequence[Answered]], blind: Sequence[Floats]
) -> Iterator[dict[str, Any]]:
    contexts = context_numbers(data)
    reference: Floats | None = None
    for alpha in _ALPHAS:
        scores = 100 * np.array(
            [
                _scored(question, _chosen(answers, without, alpha), data)
                for question, answers, without in zip(data.questions, found, blind, strict=True)
            ]
        )
        reference = scores if reference is None else reference
        changes = estimates(scores - reference, contexts)
        yield {
            "alpha": alpha,
            "questions": len(scores),
            "exact_match": float(scores[:, 0].mean()),
            "f1": float(scores[:, 1].mean()),
            **{f"{name}_change": change for name, change in changes.items()},
        }


def _chosen(answers: Sequence[Answered], blind: Floats, alpha: float) -> Answered:
    read = np.array([answer.log_probability for answer in answers])
    return answers[int(np.argmax((1 + alpha) * read - alpha * blind))]


def _scored(question: Question, answer: Answered, data: QADataset) -> tuple[float, float]:
    found = score_question(answer.text, question, data.version)
    return found.exact_match, found.f1


if __name__ == "__main__":
    main()
