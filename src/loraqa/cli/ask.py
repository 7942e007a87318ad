"""`loraqa ask`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from loraqa.answer.strategies import DEFAULT_STRATEGY, MAX_SAMPLES
from loraqa.cli.options import (
    Base,
    Device,
    Dtype,
    Json,
    MaxAnswer,
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
from loraqa.cli.output import importing_pytorch, new_console, print_json
from loraqa.cli.paths import check_not_input
from loraqa.cli.readers import load_reader
from loraqa.errors import InputError, quote
from loraqa.prompt.defaults import DEFAULT_WINDOWS

# So many characters are read before a progress bar would be seen.
_LONG = 10_000


def ask(
    run: Run,
    questions: Annotated[list[str], typer.Argument(help="Questions to ask.")],
    context_file: Annotated[
        Path, typer.Option(help="Text, PDF, HTML or DOCX; - is standard input.")
    ],
    strategy: Strategy = DEFAULT_STRATEGY,
    answers: Annotated[
        int,
        typer.Option(help="Answers to each question, at most, best first.", min=1, max=MAX_SAMPLES),
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
    text_out: Annotated[
        Path | None,
        typer.Option(help="New file for the text of a PDF, HTML or DOCX, in which offsets count."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask questions about a text."""
    from loraqa.adapter.find import check_source
    from loraqa.documents import read_document
    from loraqa.files import check_file_writable, write_text_once

    _check_order_of_ask(run, questions, context_file)
    if text_out:
        check_file_writable(text_out)
        check_not_input(text_out, str(context_file), "--text-out")
    check_source(run, base)
    document = read_document(context_file)
    if text_out:
        write_text_once(text_out, document.text)

    with importing_pytorch():
        from loraqa.answer.reader import check_asked
        from loraqa.answer.strategies import parse_strategy
        from loraqa.reader_options import ReaderOptions
        from loraqa.report.answers import answer_lines, answers_json
        from loraqa.report.progress import answering_progress

    check_asked(document.text, questions)
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
    with answering_progress() if len(document.text) > _LONG else nullcontext() as progress:
        found = reader.candidates(
            document.text, questions, answers, decoding, seed=seed, progress=progress
        )
    if as_json:
        print_json(answers_json(document, found, answers))
    else:
        console = new_console()
        for line in answer_lines(document, questions, found):
            # In a file or a pipe a line stays a line.
            console.print(line, soft_wrap=not console.is_terminal)


def _check_order_of_ask(run: Path, questions: Sequence[str], context_file: Path) -> None:
    """Raise `InputError` if run, text and a question were given for each other."""
    if run.is_file() and context_file.is_dir():
        raise InputError(
            f"{run} is a file and {context_file} a folder; give the folder of the run first, and "
            "the text's file with --context-file."
        )
    for question in questions:
        if not run.is_dir() and _is(question, Path.is_dir):
            raise InputError(
                f"The question {quote(question)} is a folder, but {quote(str(run))} is none; give "
                "the run first, then the questions."
            )
        if not context_file.exists() and _is(question, Path.is_file):
            raise InputError(
                f"The question {quote(question)} is a file, but --context-file "
                f"{quote(str(context_file))} is none; give the text's file with --context-file."
            )


def _is(text: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(Path(text))
    except OSError:
        # A question may be longer than a path.
        return False
