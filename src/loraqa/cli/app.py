"""The commands, in the order in which the help lists them."""

import sys
from typing import Annotated

import typer

from loraqa import __version__
from loraqa.cli.analyze import analyze
from loraqa.cli.answer import answer
from loraqa.cli.ask import ask
from loraqa.cli.calibrate import calibrate
from loraqa.cli.compare import compare
from loraqa.cli.demo import demo
from loraqa.cli.diff import diff
from loraqa.cli.evaluate import evaluate
from loraqa.cli.export import export
from loraqa.cli.inspect import inspect
from loraqa.cli.report import report
from loraqa.cli.score import score
from loraqa.cli.serve import serve
from loraqa.cli.sweep import sweep
from loraqa.cli.train import train

app = typer.Typer(
    name="loraqa",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain text; rich's help would show flags as `--json <bool>`.
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"loraqa {__version__}\n")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Teach a language model to answer questions about your own texts."""


for _command in (
    *(demo, inspect, train, sweep, evaluate, calibrate, score, compare),
    *(report, diff, ask, answer, serve, analyze, export),
):
    app.command()(_command)
