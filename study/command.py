"""What the commands of the study that measure a run have in common."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def print_parts(
    measured: Callable[[argparse.Namespace], Iterator[Any]], options: argparse.Namespace
) -> None:
    """Print each part as a line of JSON as soon as it is measured, or one sentence on an error."""
    try:
        for part in measured(options):
            sys.stdout.write(json.dumps(part) + "\n")
            sys.stdout.flush()
    except (LoraqaError, OSError) as error:
        message, status = explain(error)
        sys.stderr.write(f"study: {message}\n")
        sys.exit(status)
