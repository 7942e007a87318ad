"""`loraqa report`."""

from pathlib import Path
from typing import Annotated

import typer

from loraqa.cli.output import tell


def report(
    run: Annotated[
        Path, typer.Argument(help="Run, or a folder that evaluate or compare wrote a report into.")
    ],
) -> None:
    """Write the report of a run again, from its files."""
    from loraqa.report.run import write_report

    tell(f"The report is {write_report(run)}.")
