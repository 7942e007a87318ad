"""Training data with unanswerable questions where there is no SQuAD v2.0 training file.

    python -m study.no_answer V1_TRAIN V2_DEV --out FOLDER --questions 4000

Every second article of the v2.0 file is to learn from, beside questions of the v1.1 file, and the
others are to score on: FOLDER gets train.json and dev.json. No article is in both.
"""

import argparse
import sys
from itertools import chain, groupby
from pathlib import Path

from loraqa.answer.evaluate import sample_questions
from loraqa.errors import InputError, LoraqaError, explain
from loraqa.squad import Passage, QADataset, read_passages, write_official


def main() -> None:
    """Write both files."""
    options = _parser().parse_args()
    try:
        learned, scored = halves(read_passages(options.v2))
        if not scored:
            raise InputError(f"{options.v2} has fewer than two titles; give a file with titles.")
        answerable = sample_questions(read_passages(options.v1), options.questions, seed=0)
        options.out.mkdir(parents=True, exist_ok=True)
        write_official(options.out / "train.json", [*answerable.passages, *learned], "2.0")
        write_official(options.out / "dev.json", scored, "2.0")
    except (LoraqaError, OSError) as error:
        message, status = explain(error)
        sys.stderr.write(f"study: {message}\n")
        sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "study.no_answer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("v1", help="a SQuAD v1.1 file to train on")
    parser.add_argument("v2", help="a SQuAD v2.0 file")
    parser.add_argument("--questions", type=int, required=True, help="so many of the v1.1 file")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def halves(data: QADataset) -> tuple[list[Passage], list[Passage]]:
    """Return the passages of every second article, from the first on, and the others."""
    articles = [list(group) for _, group in groupby(data.passages, lambda passage: passage.title)]
    return list(chain(*articles[::2])), list(chain(*articles[1::2]))


if __name__ == "__main__":
    main()
