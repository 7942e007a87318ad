"""`loraqa score`."""

from pathlib import Path
from typing import Annotated

import typer

from loraqa.cli.options import Data, Json, OnBad
from loraqa.cli.output import new_console, print_json


def score(
    predictions: Annotated[Path, typer.Argument(help="JSON file: answers by question id.")],
    data: Data,
    no_answer_probabilities: Annotated[
        Path | None, typer.Option(help="JSON file: probabilities of no answer by question id.")
    ] = None,
    on_bad: OnBad = "stop",
    as_json: Json = False,
) -> None:
    """Compute official exact match and F1 of a predictions file."""
    from loraqa.squad import (
        check_ids,
        read_no_answer_probabilities,
        read_passages,
        read_predictions,
    )
    from loraqa.squad import score as official_score

    answers = read_predictions(predictions)
    probabilities = (
        read_no_answer_probabilities(no_answer_probabilities) if no_answer_probabilities else None
    )
    dataset = read_passages(data, on_bad=on_bad)
    check_ids(dataset, answers)
    scores = official_score(answers, dataset, probabilities).to_json()
    if as_json:
        print_json(scores)
    else:
        from loraqa.report.tables import scores_table

        new_console().print(scores_table(scores).to_rich())
