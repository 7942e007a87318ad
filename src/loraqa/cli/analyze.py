"""`loraqa analyze`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from loraqa.cli.options import (
    Base,
    Device,
    Dtype,
    Json,
    OnBad,
    Seed,
    Strategy,
    TokensPerBatch,
    Trained,
    Without,
)
from loraqa.cli.output import importing_pytorch, new_console, print_json, tell
from loraqa.cli.paths import is_run, place_for
from loraqa.notices import status_line


def analyze(
    run: Trained,
    data: Annotated[
        str | None,
        typer.Option(help="Also score answers after parts of the adapter are taken away."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Another run or adapter to compare with; may be repeated."),
    ] = None,
    strategy: Strategy = "greedy",
    questions: Annotated[
        int, typer.Option(help="Use about so many questions of --data, on whole contexts.", min=1)
    ] = 200,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for words, tables and plots, made if it is missing; default: "
            "RUN/analysis for a run, else ./analysis."
        ),
    ] = None,
    base: Base = None,
    device: Device = "auto",
    dtype: Dtype = None,
    tokens_per_batch: TokensPerBatch = None,
    without: Without = "",
    seed: Seed = 0,
    on_bad: OnBad = "stop",
    as_json: Json = False,
) -> None:
    """Show what LoRA learned, and what each part of it is worth."""
    from loraqa.adapter.find import adapter_of
    from loraqa.files import check_folder_writable, check_new_file, one_writer
    from loraqa.squad import read_passages

    for each in (run, *(against or ())):
        adapter_of(each)
    folder = out or place_for(run, "analysis")
    check_folder_writable(folder)
    if out:
        check_new_file(folder / "analysis.json")
    elif (folder / "analysis.json").exists():
        tell(f"The analysis in {folder} will be replaced (--out FOLDER keeps one elsewhere).")
    dataset = read_passages(data, on_bad=on_bad) if data else None

    with importing_pytorch():
        from loraqa.analyze import analyze as analyze_adapter
        from loraqa.analyze import effects
        from loraqa.answer.evaluate import sample_questions
        from loraqa.answer.strategies import parse_strategy
        from loraqa.reader_options import ReaderOptions
        from loraqa.report.learned import findings, save_learned, tables
        from loraqa.report.progress import answering_progress
        from loraqa.report.run import rewrite_report

    with one_writer(folder):
        with status_line(f"Loading {run} …"):
            learned = analyze_adapter(run, base=base, against=against or ())
        if dataset:
            sample = sample_questions(dataset, questions, seed)
            options = ReaderOptions(
                run,
                base=base,
                device=device,
                dtype=dtype,
                tokens_per_batch=tokens_per_batch,
                without=without,
            )
            with answering_progress(of="answer") as progress:
                found = effects(
                    options, sample, parse_strategy(strategy), seed=seed, progress=progress
                )
            learned = replace(learned, effects=found)
        save_learned(learned, folder)
    page = rewrite_report(run if out is None and is_run(run) else folder)
    if as_json:
        print_json(learned.to_json())
        return
    console = new_console()
    for paragraph in findings(learned):
        console.print(f"{paragraph}\n")
    for table in tables(learned):
        console.print(table.to_rich())
    tell(f"Words, tables, plots and JSON are in {folder}.")
    if page:
        tell(f"The report is {page}.")
