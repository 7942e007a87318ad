"""`loraqa demo`."""

from pathlib import Path
from typing import Annotated

import typer

from loraqa.cli.options import Json
from loraqa.cli.output import importing_pytorch, new_console, print_json


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run and the report.")] = Path(
        "demo-out"
    ),
    model: Annotated[
        str | None,
        typer.Option(help="Pretrained base model instead of the embedded one, as for train."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="With --model: your training data instead of the example's.")
    ] = None,
    dev: Annotated[str | None, typer.Option(help="Data to score on, like --train.")] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an embedded example offline, and write a report."""
    from loraqa.demo import check_choice, check_room

    check_room(out)
    check_choice(model, train, dev)

    with importing_pytorch():
        from loraqa.demo.run import run_demo

    result = run_demo(out, new_console(stderr=as_json), model=model, train=train, dev=dev)
    if as_json:
        print_json(result.to_json())
