"""`loraqa answer`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from loraqa.answer.strategies import DEFAULT_STRATEGY
from loraqa.batch.plan import DEFAULT_ROWS
from loraqa.cli.cluster import on_cluster
from loraqa.cli.options import (
    Base,
    Device,
    Dtype,
    Json,
    MaxAnswer,
    OnBad,
    Prompts,
    Quantisation,
    Ray,
    Run,
    Seed,
    Strategy,
    Threshold,
    TokensPerBatch,
    Windows,
    Without,
)
from loraqa.cli.output import importing_pytorch, print_json, tell
from loraqa.cli.paths import check_not_input, check_order
from loraqa.errors import InputError, counted, quote
from loraqa.notices import status_line
from loraqa.prompt.defaults import DEFAULT_WINDOWS


def _check_prefix(text: str) -> str:
    if not text.isprintable():
        raise InputError(
            f"--prefix {quote(text)} has a character that cannot be printed; leave it out."
        )
    return text


def _check_text_out(text_out: Path, context_file: Path | None, out: Path) -> None:
    """Raise `InputError` if there is no text to write, or no place for it."""
    from loraqa.files import check_file_writable

    if context_file is None:
        raise InputError("--text-out writes the text of --context-file; add it, or leave it out.")
    if text_out.absolute() == out.absolute():
        raise InputError(f"--text-out {text_out} is where the answers go; name another file.")
    check_file_writable(text_out)


def answer(
    run: Run,
    data: Annotated[
        Path, typer.Option(help="CSV, JSONL or Parquet file with columns context and question.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="New file in the same format, with columns for the answers added."),
    ],
    context_file: Annotated[
        Path | None,
        typer.Option(
            help="Text, PDF, HTML or DOCX that all questions are about, if the table has no "
            "contexts; - is standard input."
        ),
    ] = None,
    text_out: Annotated[
        Path | None,
        typer.Option(help="New file for the text of --context-file, in which offsets count."),
    ] = None,
    strategy: Strategy = DEFAULT_STRATEGY,
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
    prefix: Annotated[
        str,
        typer.Option(
            metavar="TEXT", callback=_check_prefix, help="Text before the names of the new columns."
        ),
    ] = "",
    rows: Annotated[
        int, typer.Option("--rows-per-part", help="Rows that are answered together.", min=1)
    ] = DEFAULT_ROWS,
    ray: Ray = None,
    readers: Annotated[
        int | None,
        typer.Option(
            help="With --ray: readers at most; default: one for each GPU, or for each machine.",
            min=1,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer the questions of a file of any size.

    If it is interrupted, the same command goes on from there.
    """
    from loraqa.adapter.find import check_source
    from loraqa.batch.open import check_same_format, open_source
    from loraqa.batch.options import Options
    from loraqa.batch.parts import Parts
    from loraqa.batch.plan import make_plan
    from loraqa.documents import read_document
    from loraqa.files import check_file_writable, write_text_once
    from loraqa.reader_options import ReaderOptions

    if readers is not None and ray is None:
        raise InputError("--readers says how many work on a cluster; add --ray, or leave it out.")
    if text_out:
        _check_text_out(text_out, context_file, out)
    check_not_input(out, str(data))
    if context_file:
        check_not_input(out, str(context_file))
    check_file_writable(out)
    Parts.check_unwritten(out)
    check_order(run, str(data))
    check_source(run, base)
    document = read_document(context_file) if context_file else None
    source = open_source(data, prefix, document)
    check_same_format(source, out)
    with status_line(f"Reading {data} …"):
        plan = make_plan(source, rows, on_bad)
    if text_out and document:
        write_text_once(text_out, document.text)

    with importing_pytorch():
        from loraqa.batch.answer import answer_file
        from loraqa.report.progress import answering_progress

    reader = ReaderOptions(
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
    options = Options(reader, strategy, seed, rows, on_bad)
    with (
        on_cluster(ray, "answer", readers) if ray else nullcontext() as answer_parts,
        answering_progress(of="row") as progress,
    ):
        done = answer_file(plan, out, options, progress=progress, answer_parts=answer_parts)
    if as_json:
        print_json(done.to_json())
        return
    without_answer = f", {done.skipped:,} of them skipped," if done.skipped else ""
    tell(f"The answers to {counted(done.rows, 'row')}{without_answer} are in {out}.")
