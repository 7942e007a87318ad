"""`loraqa export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from loraqa.cli.adapters import named_adapters
from loraqa.cli.options import Adapters, Base
from loraqa.cli.output import importing_pytorch, tell
from loraqa.errors import InputError


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run, or adapter (loraqa's or PEFT's); with --adapter a weighted sum, "
            "law:0.7+news:0.3."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder.")],
    format: Annotated[
        Literal["peft", "merged"],
        typer.Option(help="The adapter alone, or a transformers model in float32."),
    ] = "peft",
    adapter: Adapters = None,
    base: Base = None,
) -> None:
    """Write an adapter, a sum of adapters, or the merged model."""
    from loraqa.adapter.choice import parse_choice
    from loraqa.adapter.find import adapter_of
    from loraqa.files import check_new_folder

    named = named_adapters(adapter or [])
    if named:
        parse_choice(str(run), named)
        if format == "merged":
            raise InputError(
                "A sum is written as an adapter; leave --format out, and then merge that adapter."
            )
    else:
        adapter_of(run)
    check_new_folder(out)

    with importing_pytorch():
        from loraqa.answer.export import export_adapter, export_merged, export_sum

    if format == "merged":
        change = export_merged(run, out, base=base)
        tell(
            f"The merged model is in {out}, in float32, because bfloat16 would round parts of the "
            f"update away. Merging changed no logit by more than {change:.2g}."
        )
        return
    if named:
        export_sum(str(run), named, out, base=base)
    else:
        export_adapter(run, out, base=base)
    tell(f"The adapter is in {out}; PEFT loads it as it is.")
