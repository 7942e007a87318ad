"""How answers stand small changes: `python -m study.robustness RUN --dev DEV --addsent ADDSENT`.

Prints a JSON object for each part as soon as it is measured:

- `as_written`, `typos`, `lower_case`, `upper_case`: the same questions, written otherwise, each
  with its change of EM and F1 and 95% intervals;
- `addsent`: questions of AddSent (Jia and Liang 2017, "Adversarial Examples for Evaluating Reading
  Comprehension Systems") on their own context, and the worst of each with a distracting sentence.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraqa.answer.evaluate import evaluate
from loraqa.reader import Reader
from loraqa.report.progress import answering_progress
from loraqa.squad import QADataset, Question, Scores, read_passages
from loraqa.squad.segmentation import words
from study.command import context_numbers, dev_questions, estimates, parser_of, print_parts

Floats = NDArray[np.float64]
Rewrite = Callable[[str], str]

# Shorter words are rarely mistyped, and cannot be understood if they are.
_SHORTEST = 4
_TYPOS = 0.25
# On a keyboard the letters beside each other are those that stand beside each other here.
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = parser_of("study.robustness", __doc__)
    parser.add_argument("--addsent", help="a SQuAD v1.1 file with distracting sentences")
    print_parts(_measured, parser.parse_args())


def _measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    reader = Reader.load(options.run, base=options.base)
    data = dev_questions(options)
    as_written = _scores(reader, data)
    yield {"as_written": _figures(as_written, data)}
    for name, rewrite in REWRITES.items():
        rewritten = _scores(reader, with_questions(data, rewrite))
        yield {name: _figures(rewritten, data) | _changes(as_written, rewritten, data)}
    if options.addsent:
        distracting = read_passages(options.addsent)
        yield {"addsent": _addsent(_scores(reader, distracting), distracting)}


def _scores(reader: Reader, data: QADataset) -> Scores:
    with answering_progress() as progress:
        return evaluate(reader, data, progress=progress).scores


def with_questions(data: QADataset, rewrite: Rewrite) -> QADataset:
    """Return the data set with its questions written otherwise."""
    return replace(
        data,
        passages=tuple(
            replace(
                passage,
                questions=tuple(replace(q, text=rewrite(q.text)) for q in passage.questions),
            )
            for passage in data.passages
        ),
    )


def with_typos(question: str) -> str:
    """Mistype a letter in about a quarter of the longer words, never their first or last one.

    The letter is left out, doubled, swapped with the next one, or the key beside it is hit. The
    same question always gets the same typos.
    """
    random = np.random.default_rng(list(question.encode()))
    parts: list[str] = []
    done = 0
    for start, end in words(question):
        word = question[start:end]
        if len(word) >= _SHORTEST and word.isalpha() and random.random() < _TYPOS:
            parts += question[done:start], _mistyped(word, random)
            done = end
    return "".join([*parts, question[done:]])


def _mistyped(word: str, random: np.random.Generator) -> str:
    place = int(random.integers(1, len(word) - 1))
    letter, following = word[place], word[place + 1]
    left_out, doubled, swapped = following, letter * 2 + following, following + letter
    typos = [left_out, doubled, _key_beside(letter, random) + following]
    # Swapping equal letters changes nothing.
    if letter != following:
        typos.append(swapped)
    return word[:place] + typos[int(random.integers(len(typos)))] + word[place + 2 :]


def _key_beside(letter: str, random: np.random.Generator) -> str:
    for row in _KEYS:
        if letter in row:
            place = row.index(letter)
            beside = row[max(place - 1, 0) : place] + row[place + 1 : place + 2]
            return beside[int(random.integers(len(beside)))]
    return letter * 2


REWRITES: dict[str, Rewrite] = {
    "typos": with_typos,
    "lower_case": str.lower,
    "upper_case": str.upper,
}
"""Ways to write a question that do not change what it asks."""


def _values(scores: Scores, questions: list[Question]) -> Floats:
    """Return exact match and F1 in percent, (questions, 2)."""
    found = [scores.by_question[question.id] for question in questions]
    return 100 * np.array([(score.exact_match, score.f1) for score in found], dtype=np.float64)


def _figures(scores: Scores, data: QADataset) -> dict[str, Any]:
    values = _values(scores, data.questions)
    return {"questions": len(values), **estimates(values, context_numbers(data))}


def _changes(before: Scores, after: Scores, data: QADataset) -> dict[str, Any]:
    change = _values(after, data.questions) - _values(before, data.questions)
    return {
        f"{name}_change": each for name, each in estimates(change, context_numbers(data)).items()
    }


def _addsent(scores: Scores, data: QADataset) -> dict[str, Any]:
    """Score each question as written, and the worst of it and its variants, as the authors do.

    A variant's id is the question's, with a suffix after a hyphen.
    """
    values = _values(scores, data.questions)
    rows: dict[str, list[Floats]] = {}
    for question, value in zip(data.questions, values, strict=True):
        rows.setdefault(question.id.partition("-")[0], []).append(value)
    own = [number for number, question in enumerate(data.questions) if question.id in rows]
    worst = np.array([np.min(rows[data.questions[number].id], axis=0) for number in own])
    contexts = np.unique(context_numbers(data)[own], return_inverse=True)[1]
    return {
        "questions": len(own),
        "own_context": estimates(values[own], contexts),
        "worst": estimates(worst, contexts),
    }


if __name__ == "__main__":
    main()
