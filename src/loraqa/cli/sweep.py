"""`loraqa sweep`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from loraqa.cli.cluster import on_cluster
from loraqa.cli.options import Json, Ray
from loraqa.cli.output import command_line, importing_pytorch, new_console, print_json, tell
from loraqa.errors import InputError, LoraqaError


def sweep(
    ranges: Annotated[Path, typer.Argument(help="What to try of each setting (YAML).")],
    out: Annotated[
        Path, typer.Option(help="Folder of the sweep: new, or the sweep to go on with.")
    ],
    config: Annotated[
        Path | None, typer.Option(help="Settings file (YAML) that all trials share.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model, as for train.")] = None,
    train: Annotated[str | None, typer.Option(help="Training data, as for train.")] = None,
    dev: Annotated[
        str | None, typer.Option(help="Data to score each trial on; needed here or in --config.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, such as lora.rank=8; may be repeated."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials at most, instead of what the file says.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of draws and trainings.")] = None,
    ray: Ray = None,
    trials_at_once: Annotated[
        int | None,
        typer.Option(
            help="With --ray: trials at the same time; default: one for each GPU, or for each "
            "machine.",
            min=1,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train with many settings, and keep the best.

    If it is interrupted, the same command goes on from there.
    """
    from loraqa.sweep.report import trials_table
    from loraqa.sweep.settings import read_sweep
    from loraqa.sweep.tried import best_of
    from loraqa.train.settings import choose_settings

    if trials_at_once is not None and ray is None:
        raise InputError("--trials-at-once is for a cluster; add --ray, or leave it out.")
    flags = {"model.source": model, "data.train": train, "data.dev": dev, "seed": seed}
    base = choose_settings([config] if config else [], flags, settings or [])
    what = read_sweep(ranges, base)
    if trials is not None:
        what = what.model_copy(update={"trials": trials})

    try:
        with importing_pytorch():
            from loraqa.sweep.run import one_after_another
            from loraqa.sweep.run import sweep as run_sweep
    except ModuleNotFoundError as error:
        raise LoraqaError(
            f"`loraqa sweep` needs {error.name}; install it with `pip install -e '.[sweep]'`."
        ) from None

    with (
        on_cluster(ray, "sweep", trials_at_once)
        if ray
        else nullcontext(one_after_another) as train_trials
    ):
        tried = run_sweep(what, base, out, command_line(), train_trials)
    if as_json:
        print_json({"trials": [trial.to_json() for trial in tried]})
        return
    new_console().print(trials_table(tried).to_rich())
    if best := best_of(tried):
        tell(
            f"Trial {best.number} is the best; train with its settings by "
            f"`loraqa train {out / 'best.yaml'} --out RUN`. The report is {out / 'report.html'}."
        )
