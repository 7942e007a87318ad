"""What the commands of the study that measure a run have in common."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraqa.analysis.significance import Estimate
from loraqa.answer.evaluate import sample_questions
from loraqa.errors import LoraqaError, explain
from loraqa.squad import QADataset, read_passages


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for a run, and for the dev questions to measure it with."""
    parser = argparse.ArgumentParser(
        name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--base", help="where the base model is, if it was moved")
    parser.add_argument("--dev", required=True, help="a SQuAD v1.1 file")
    parser.add_argument("--questions", type=int, help="about so many, on whole contexts")
    return parser


def dev_questions(options: argparse.Namespace) -> QADataset:
    """Return as many of the dev questions as the command line asks for."""
    data = read_passages(options.dev)
    return sample_questions(data, options.questions or len(data.order), seed=0)


def context_numbers(data: QADataset) -> NDArray[np.int64]:
    """Return the number of each question's context, (questions,), in the order of the passages."""
    counts = [len(passage.questions) for passage in data.passages]
    return np.repeat(np.arange(len(counts)), counts)


def estimates(
    scores: NDArray[np.float64], contexts: NDArray[np.int64]
) -> dict[str, tuple[float, float, float]]:
    """Return the mean, and the ends of its 95% interval, of exact match and of F1.

    Args:
        scores: (questions, 2) exact match and F1 of each question, or their changes.
        contexts: (questions,) the context of each question, numbered from 0.
    """
    found = {
        name: Estimate.of(scores[:, column], contexts)
        for column, name in enumerate(("exact_match", "f1"))
    }
    return {name: (each.mean, each.low, each.high) for name, each in found.items()}


def print_parts(
    measured: Callable[[argparse.Namespace], Iterator[Any]], options: argparse.Namespace
) -> None:
    """Print each part as a line of JSON as soon as it is measured, or one sentence on an error."""
    with telling_errors():
        for part in measured(options):
            sys.stdout.write(json.dumps(part) + "\n")
            sys.stdout.flush()


@contextmanager
def telling_errors() -> Iterator[None]:
    """End with one sentence on an error that a user can mend."""
    try:
        yield
    except (LoraqaError, OSError) as error:
        message, status = explain(error)
        sys.stderr.write(f"study: {message}\n")
        sys.exit(status)
