"""`loraqa evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from loraqa.answer.strategies import DEFAULT_STRATEGY, MAX_SAMPLES
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
    Strategy,
    Threshold,
    TokensPerBatch,
    Windows,
    Without,
)
from loraqa.cli.output import command_line, importing_pytorch, new_console, print_json, tell
from loraqa.cli.paths import check_not_input, check_order, is_run
from loraqa.cli.readers import load_reader
from loraqa.prompt.defaults import DEFAULT_WINDOWS

# The ending of the official file of probabilities of "no answer", beside the predictions.
_PROBABILITIES = ".na_prob.json"


def evaluate(
    run: Run,
    data: Data,
    strategy: Strategy = DEFAULT_STRATEGY,
    out: Annotated[
        Path | None, typer.Option(help="New file for the predictions; missing folders are made.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report, without an evaluation yet; default: the run, else a "
            "folder beside --out."
        ),
    ] = None,
    answers: Annotated[
        int,
        typer.Option(
            help="Answers to each question in the report, at most, best first; more take longer.",
            min=1,
            max=MAX_SAMPLES,
        ),
    ] = 1,
    windows: Windows = DEFAULT_WINDOWS,
    no_answer_threshold: Threshold = None,
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
    """Answer a data set and score the answers as SQuAD does.

    A report shows slices, calibration and every error.

    If it is interrupted, the same command goes on from there.
    """
    from loraqa.adapter.find import check_source
    from loraqa.analysis.outcome import FILE
    from loraqa.answer.journal import Journal
    from loraqa.files import check_file_writable, check_folder_writable, write_json
    from loraqa.squad import read_passages

    if out:
        check_file_writable(out)
        check_not_input(out, data)
    if report:
        check_folder_writable(report)
    folder = report or _report_folder(run, out)
    made = [out, out.with_suffix(_PROBABILITIES)] if out else []
    # The report in a run is replaced, unless an option names it.
    if folder and (report or folder != run):
        made.append(folder / FILE)
    if made:
        Journal.check_unwritten(*made)
    check_order(run, data)
    check_source(run, base)
    dataset = read_passages(data, on_bad=on_bad)

    with importing_pytorch():
        from loraqa.answer.evaluate import evaluate as evaluate_reader
        from loraqa.answer.outcome import outcome_of
        from loraqa.answer.strategies import parse_strategy
        from loraqa.reader_options import ReaderOptions
        from loraqa.report.progress import answering_progress
        from loraqa.report.run import keep_outcome
        from loraqa.report.tables import scores_table

    decoding = parse_strategy(strategy)
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
        no_answer_threshold=no_answer_threshold,
    )
    reader = load_reader(options)
    identity, work = reader.identify(), (dataset.fingerprint, strategy, answers, seed)
    with (
        Journal.beside(made[0], identity) if made else Journal.in_cache(identity, *work) as journal
    ):
        with answering_progress(journal) as progress:
            result = evaluate_reader(
                reader,
                dataset,
                decoding,
                answers=answers,
                seed=seed,
                progress=progress,
                journal=journal,
            )
        if out:
            write_json(out, result.predictions)
            if dataset.version == "2.0":
                write_json(out.with_suffix(_PROBABILITIES), result.no_answer_probabilities)
        page = None
        if folder:
            outcome = outcome_of(
                result, dataset, model=run, strategy=strategy, command=command_line()
            )
            # Before the journal is removed, so that a killed job goes on to the report, too.
            page = keep_outcome(outcome, folder)
            if page is None:
                journal.keep()
    if as_json:
        print_json(result.to_json())
    else:
        new_console().print(scores_table(result.to_json()).to_rich())
        if page:
            tell(f"The report is {page}.")


def _report_folder(source: Path, out: Path | None) -> Path | None:
    """Return the folder of an evaluation's report: the run, else one beside the predictions."""
    if is_run(source):
        return source
    return out.with_name(f"{out.stem}-report") if out else None
