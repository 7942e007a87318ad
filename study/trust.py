"""Whether answers can be trusted: `python -m study.trust RUN --dev squad1-dev.json`.

Prints a JSON object for each part as soon as it is measured:

- `calibration`: how well confidence, and the probabilities that it replaces, say which answers are
  right;
- `wrong_text`: how well they tell a question on its own context from one on another context of the
  same article;
- `articles`: scores of whole articles as one context each, by the number of windows that are read,
  beside those of their paragraphs.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from loraqa.analysis.calibration_figures import auroc, brier, ece, risk_coverage
from loraqa.answer.answered import Answered
from loraqa.answer.evaluate import Evaluated, evaluate, sample_questions
from loraqa.errors import InputError
from loraqa.reader import Reader
from loraqa.report.progress import answering_progress
from loraqa.squad import Answer, Passage, QADataset, read_passages
from loraqa.squad.negatives import with_negatives
from study.command import dev_questions, parser_of, print_parts

_SEPARATOR = "\n\n"
# Answers are good enough if a fifth is wrong.
_RISK = 0.2

Measure = Callable[[Answered], float]


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = parser_of("study.trust", __doc__)
    parser.add_argument("--articles", type=int, help="so many questions on whole articles")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 3, 5, 10])
    print_parts(_measured, parser.parse_args())


def _measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    reader = replace(Reader.load(options.run, base=options.base), no_answer_threshold=None)
    if reader.calibration is None:
        raise InputError(f"{options.run} is not calibrated; train it with data.held_out.")
    data = read_passages(options.dev)
    sample = dev_questions(options)
    asked = _answered(reader, sample)
    yield {"calibration": _calibration(asked)}
    elsewhere = _on_wrong_contexts(data, frozenset(sample.order))
    yield {"wrong_text": _wrong_text(asked, _answered(reader, elsewhere))}
    for scores in _articles(reader, data, options.articles or len(data.order), options.windows):
        yield {"articles": scores}


def _answered(reader: Reader, data: QADataset) -> Evaluated:
    with answering_progress() as progress:
        return evaluate(reader, data, progress=progress)


def _measures() -> dict[str, Measure]:
    """Return the ways to say how far an answer can be trusted."""
    return {
        "probability": lambda answer: math.exp(answer.log_probability),
        "share": lambda answer: _known(answer.span_probability),
        "confidence": lambda answer: _known(answer.confidence),
    }


def _known(value: float | None) -> float:
    if value is None:
        raise InputError("Some answers have no confidence; answer with span search.")
    return value


def _calibration(asked: Evaluated) -> dict[str, Any]:
    right = [asked.scores.by_question[a.question_id].exact_match for a in asked.answers]
    figures: dict[str, Any] = {
        "questions": len(right),
        "exact_match": asked.scores.exact_match,
        "f1": asked.scores.f1,
    }
    for name, measure in _measures().items():
        values = [min(measure(answer), 1.0) for answer in asked.answers]
        figures[name] = {
            "ece": ece(values, right),
            "brier": brier(values, right),
            "auroc": auroc(values, right),
            "coverage_at_80": _coverage(values, right),
        }
    return figures


def _coverage(values: Sequence[float], right: Sequence[float]) -> float:
    """Return the largest share of the questions whose answers are right in 80 of 100 cases."""
    coverage, risk = risk_coverage(values, right)
    enough = coverage[risk <= _RISK]
    return float(enough[-1]) if len(enough) else 0.0


def _on_wrong_contexts(data: QADataset, asked: frozenset[str]) -> QADataset:
    """Ask some questions on the best match among the contexts that do not hold their answer."""
    both = with_negatives(data, 1.0, seed=0)
    negatives = set(both.order) - set(data.order)
    wanted = {id for id in negatives if id.removesuffix(" elsewhere") in asked}
    passages = [
        replace(passage, questions=tuple(q for q in passage.questions if q.id in wanted))
        for passage in both.passages
    ]
    # Scored as v2.0, because none of the questions has an answer.
    kept = both.with_passages(passage for passage in passages if passage.questions)
    return replace(kept, version="2.0")


def _wrong_text(asked: Evaluated, elsewhere: Evaluated) -> dict[str, float | None]:
    """Return how often a question on its own context is trusted more than one on another."""
    own = [1.0] * len(asked.answers) + [0.0] * len(elsewhere.answers)
    answers = [*asked.answers, *elsewhere.answers]
    return {
        name: auroc([min(measure(answer), 1.0) for answer in answers], own)
        for name, measure in _measures().items()
    }


def _articles(
    reader: Reader, data: QADataset, questions: int, windows: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield the scores of paragraphs, then of whole articles by the number of windows."""
    paragraphs = sample_questions(data, questions, seed=0)
    yield {"context": "paragraph", **_scores(_answered(reader, paragraphs))}
    whole = joined(data, frozenset(paragraphs.order))
    for most in windows:
        found = _answered(replace(reader, most_windows=most), whole)
        yield {"context": "article", "windows": most, **_scores(found)}


def joined(data: QADataset, asked: frozenset[str]) -> QADataset:
    """Return each article as one passage, with those of its questions whose ids are in `asked`."""
    articles = []
    for title, group in groupby(data.passages, lambda passage: passage.title):
        passages = list(group)
        starts = np.cumsum([0, *(len(p.context) + len(_SEPARATOR) for p in passages[:-1])]).tolist()
        questions = tuple(
            replace(
                question,
                answers=tuple(Answer(a.text, a.start + start) for a in question.answers),
            )
            for passage, start in zip(passages, starts, strict=True)
            for question in passage.questions
            if question.id in asked
        )
        text = _SEPARATOR.join(passage.context for passage in passages)
        articles.append(Passage(text, questions, title))
    return data.with_passages(article for article in articles if article.questions)


def _scores(found: Evaluated) -> dict[str, float]:
    return {
        "questions": found.scores.total,
        "exact_match": found.scores.exact_match,
        "f1": found.scores.f1,
        "seconds": found.seconds,
    }


if __name__ == "__main__":
    main()
