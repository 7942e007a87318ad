"""`loraqa train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraqa.cli.options import ON_BAD_HELP, Json, OnBadChoice
from loraqa.cli.output import command_line, importing_pytorch, new_console, print_json, tell
from loraqa.errors import InputError, counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from loraqa.finetuning import FinetuneResult
    from loraqa.train.data import TrainingData
    from loraqa.train.settings import RunSettings


def train(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run: new, or the run to resume.")
    ] = None,
    config: Annotated[Path | None, typer.Argument(help="Settings file (YAML).")] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: a folder, a GGUF file, or a name on the hub.")
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Training data: a file, or a data set on the hub.")
    ] = None,
    dev: Annotated[
        str | None, typer.Option(help="Data to score on during training, like --train.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="A run or an adapter to go on from, over the same base."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, such as lora.rank=8; may be repeated."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    on_bad: Annotated[OnBadChoice | None, typer.Option(help=ON_BAD_HELP)] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use random weights (for tests).")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what the training costs, and write no run; --out may be missing.",
        ),
    ] = False,
    find_learning_rate: Annotated[
        bool,
        typer.Option(
            "--find-learning-rate", help="First try some learning rates for a few steps; take one."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model with LoRA.

    docs/settings.md lists all settings.
    """
    from loraqa.distributed.launch import told_by_the_first
    from loraqa.train.run import RunDirectory
    from loraqa.train.settings import choose_settings

    flags = {
        "model.source": model,
        "data.train": train,
        "data.dev": dev,
        "data.on_bad": on_bad,
        "lora.start": start,
        "seed": seed,
        "model.random_weights": "true" if random_weights else None,
    }
    with told_by_the_first(InputError):
        _check_dry_run(dry_run, out, resume)
        _check_finding(find_learning_rate, dry_run, resume)
        _check_alone(dry_run, find_learning_rate)
    overrides = settings or []
    if out is None:
        _show_costs(choose_settings([config] if config else [], flags, overrides), as_json)
        return

    def choose() -> "RunSettings":
        return RunDirectory(out).choose_settings(config, flags, overrides, resume)

    if dry_run:
        _show_costs(choose(), as_json)
    else:
        _finetune(choose, out, resume, find_learning_rate, as_json)


def _check_alone(dry_run: bool, find_learning_rate: bool) -> None:
    """Raise `InputError` if several processes were started for what one does."""
    from loraqa.distributed.launch import check_alone

    for option, given in (("--dry-run", dry_run), ("--find-learning-rate", find_learning_rate)):
        if given:
            check_alone(option)


def _check_finding(find_learning_rate: bool, dry_run: bool, resume: bool) -> None:
    """Raise `InputError` if a learning rate is to be found where none can be chosen."""
    if find_learning_rate and resume:
        raise InputError("A resumed run keeps its learning rate; leave --find-learning-rate out.")
    if find_learning_rate and dry_run:
        raise InputError(
            "--dry-run trains nothing, so it finds no learning rate; leave "
            "--find-learning-rate or --dry-run out."
        )


def _check_dry_run(dry_run: bool, out: Path | None, resume: bool) -> None:
    """Raise `InputError` if options of `train` are missing, or do not go together."""
    if dry_run and resume:
        raise InputError("--dry-run shows what a whole training costs; leave --resume out.")
    if out is None and not dry_run:
        raise InputError("--out is missing; name a folder for the run, or add --dry-run.")


def _show_costs(settings: "RunSettings", as_json: bool) -> None:
    from loraqa.speed.start.process import preparing

    with preparing(settings) as prepare:
        with importing_pytorch():
            from loraqa.costs import estimate_costs
            from loraqa.report.tables import costs_table
        costs = estimate_costs(settings, prepare=prepare).to_json()
    if as_json:
        print_json(costs)
    else:
        new_console().print(costs_table(costs).to_rich())


def _finetune(
    choose: "Callable[[], RunSettings]",
    out: Path,
    resume: bool,
    find_learning_rate: bool,
    as_json: bool,
) -> None:
    from loraqa.distributed.launch import joined
    from loraqa.speed.start.process import preparing
    from loraqa.train.run import RunDirectory, choose_together

    with joined() as ranks:
        settings = choose_together(ranks, choose)
        run = RunDirectory(out, ranks.launcher)
        with run.telling_what_is_kept(), preparing(settings) as prepare:
            with importing_pytorch():
                from loraqa.finetuning import finetune
            if find_learning_rate:
                settings = _with_found_rate(settings, prepare)
            command = f"{ranks.launcher}{command_line()}"
            result = finetune(
                settings, out, resume=resume, command=command, prepare=prepare, ranks=ranks
            )
    if ranks.is_first:
        _show_result(result, out, as_json)


def _show_result(result: "FinetuneResult", out: Path, as_json: bool) -> None:
    if as_json:
        print_json(result.to_json())
        return
    shown = f"The adapter is in {out / 'adapter'}; {out / 'report.html'} shows the training."
    tell(f"{shown} {_scores(result)}".rstrip())


def _scores(result: "FinetuneResult") -> str:
    """Return a sentence with the scores on the dev sample; empty if there are none."""
    scored = [each for each in (result.before, result.after) if each is not None]
    if result.after is None:
        return ""
    exact_match = " → ".join(f"{each.exact_match:.2f}" for each in scored)
    f1 = " → ".join(f"{each.f1:.2f}" for each in scored)
    questions = counted(result.after.total, "dev question")
    return f"On {questions}: exact match {exact_match}, F1 {f1}."


def _with_found_rate(
    settings: "RunSettings", prepare: "Callable[[RunSettings], TrainingData]"
) -> "RunSettings":
    """Return the settings with a learning rate that is found by trying some."""
    from loraqa.sweep.rates import find_learning_rate, rates_table, what_was_taken

    found = find_learning_rate(settings, prepare)
    new_console(stderr=True).print(rates_table(found).to_rich())
    tell(what_was_taken(found))
    return settings.with_values({"optimisation.learning_rate": found.learning_rate})
