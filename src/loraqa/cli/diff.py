"""`loraqa diff`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loraqa.cli.options import Json
from loraqa.cli.output import new_console, print_json


def diff(
    first: Annotated[Path, typer.Argument(help="Run, or folder of a report, with an evaluation.")],
    second: Annotated[Path, typer.Argument(help="Another one, evaluated on the same data.")],
    out: Annotated[
        Path | None, typer.Option(help="CSV file for the questions that were answered differently.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two evaluations question by question."""
    from loraqa.analysis.diff import diff as compare_outcomes
    from loraqa.analysis.outcome import Outcome
    from loraqa.files import check_file_writable, check_new_file, write_text
    from loraqa.report.diff import all_tables, changed_csv, names_of

    if out:
        check_file_writable(out)
        check_new_file(out)
    difference = compare_outcomes(Outcome.load(first), Outcome.load(second))
    if out:
        write_text(out, changed_csv(difference))
    if as_json:
        print_json(asdict(difference))
        return
    console = new_console()
    for table in all_tables(difference, names_of(first, second)):
        console.print(table.to_rich())
