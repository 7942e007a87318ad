"""`loraqa compare`."""

from pathlib import Path
from typing import Annotated

import typer

from loraqa.answer.strategies import MAX_SAMPLES, check_strategy, strategy_names
from loraqa.cli.options import (
    Base,
    Data,
    Device,
    Dtype,
    Json,
    MaxAnswer,
    OnBad,
    Prompts,
    Quantisation,
    Run,
    Seed,
    TokensPerBatch,
    Windows,
    Without,
)
from loraqa.cli.output import importing_pytorch, new_console, print_json, tell
from loraqa.cli.paths import check_order, is_run, place_for
from loraqa.cli.readers import load_reader
from loraqa.prompt.defaults import DEFAULT_WINDOWS


def _check_strategies(names: str) -> str:
    for name in strategy_names(names):
        check_strategy(name)
    return names


def compare(
    run: Run,
    data: Data,
    strategies: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            callback=_check_strategies,
            help="Decoding strategies with commas between, such as span,top-p:0.5|0.9,beam:4; the "
            "others are compared with the first. grid names 16.",
        ),
    ] = "grid",
    samples: Annotated[
        int,
        typer.Option(
            help="Answers to each question: samples, or the best that a search finds.",
            min=1,
            max=MAX_SAMPLES,
        ),
    ] = 5,
    questions: Annotated[
        int | None, typer.Option(help="Use about so many questions, on whole contexts.", min=1)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for words, tables and plot, made if it is missing; default: "
            "RUN/comparison for a run, else ./comparison."
        ),
    ] = None,
    windows: Windows = DEFAULT_WINDOWS,
    max_answer_tokens: MaxAnswer = None,
    base: Base = None,
    quantisation: Quantisation = None,
    template: Prompts = None,
    device: Device = "auto",
    dtype: Dtype = None,
    tokens_per_batch: TokensPerBatch = None,
    without: Without = "",
    seed: Seed = 0,
    on_bad: OnBad = "stop",
    as_json: Json = False,
) -> None:
    """Compare the quality and diversity of decoding strategies.

    If it is interrupted, the same command goes on from there.
    """
    from loraqa.adapter.find import check_source
    from loraqa.answer.journal import Journal
    from loraqa.files import check_folder_writable, one_writer
    from loraqa.squad import read_passages

    check_order(run, data)
    check_source(run, base)
    folder = out or place_for(run, "comparison")
    result = folder / "comparison.json"
    check_folder_writable(folder)
    if out:
        Journal.check_unwritten(result)
    elif result.exists():
        tell(f"The comparison in {folder} will be replaced (--out FOLDER keeps one elsewhere).")
    dataset = read_passages(data, on_bad=on_bad)

    with importing_pytorch():
        from loraqa.answer.compare import compare as compare_strategies
        from loraqa.answer.evaluate import sample_questions
        from loraqa.answer.strategies import parse_strategy
        from loraqa.reader_options import ReaderOptions
        from loraqa.report.comparison import save_comparison
        from loraqa.report.progress import answering_progress
        from loraqa.report.run import rewrite_report
        from loraqa.report.tables import strategies_table

    decodings = [parse_strategy(name) for name in strategy_names(strategies)]
    if questions:
        dataset = sample_questions(dataset, questions, seed)
    options = ReaderOptions(
        run,
        base=base,
        quantisation=quantisation,
        template=template,
        device=device,
        dtype=dtype,
        tokens_per_batch=tokens_per_batch,
        without=without,
        windows=windows,
        max_answer_tokens=max_answer_tokens,
    )
    reader = load_reader(options)
    journal = Journal.beside(result, reader.identify())
    with one_writer(folder), journal:
        with answering_progress(journal, of="answer") as progress:
            compared = compare_strategies(
                reader,
                dataset,
                decodings,
                samples=samples,
                seed=seed,
                progress=progress,
                journal=journal,
            )
        save_comparison(compared, folder)
        page = rewrite_report(run if out is None and is_run(run) else folder)
        if page is None:
            journal.keep()
    if as_json:
        print_json({"strategies": [row.to_json() for row in compared]})
    else:
        new_console().print(strategies_table(compared).to_rich())
        tell(f"Words, tables and plot are in {folder}.")
        if page:
            tell(f"The report is {page}.")
