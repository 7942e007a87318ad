"""The command line: arguments in, results out. The work of each command is done elsewhere.

Importing PyTorch and transformers takes seconds, so a command checks its paths before it imports
them. A wrong path is reported at once.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer

from loraqa import __version__
from loraqa.answer.strategies import (
    DEFAULT_STRATEGY,
    MAX_SAMPLES,
    check_strategy,
    strategy_names,
)
from loraqa.errors import InputError, LoraqaError, explain, quote
from loraqa.garbage import importing
from loraqa.notices import show_notices, status_line
from loraqa.prompt.defaults import DEFAULT_STRIDE, DEFAULT_WINDOWS
from loraqa.speed import chosen

if TYPE_CHECKING:
    from rich.console import Console

    from loraqa.reader import Reader
    from loraqa.train.settings import RunSettings

# So many characters are read before a progress bar would be seen.
_LONG = 10_000

# What wrong options and arguments raise. Typer exports only this part of it.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])

# The load, in processes that run or want to, from which on other work is taken to be busy.
_BUSY = 0.5

app = typer.Typer(
    name="loraqa",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain text; rich's help would show flags as `--json <bool>`.
    rich_markup_mode=None,
)

Run = Annotated[
    Path,
    typer.Argument(help="Run, adapter (loraqa's or PEFT's), merged model, or base model."),
]
Trained = Annotated[Path, typer.Argument(help="Run, or adapter (loraqa's or PEFT's).")]


def _check_base(source: str | None) -> str | None:
    if source is not None:
        from loraqa.model.source import ModelSource

        ModelSource(source)
    return source


Base = Annotated[
    str | None,
    typer.Option(
        callback=_check_base, help="Base model, if it moved or the adapter does not name one."
    ),
]
Data = Annotated[
    str, typer.Option(help="SQuAD JSON, JSONL, CSV or Parquet file, or a data set on the hub.")
]
OnBadChoice = Literal["stop", "skip"]
ON_BAD_HELP = "Stop at a question with a problem, or skip it and count it."
OnBad = Annotated[OnBadChoice, typer.Option(help=ON_BAD_HELP)]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to standard output, and nothing else.")
]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]
MaxAnswer = Annotated[
    int | None, typer.Option(help="Longest answer in tokens; default: as in the run.", min=1)
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--no-answer-threshold",
        help='Say "no answer" above this probability of it; default: as in the run.',
        min=0,
        max=1,
    ),
]


def _check_windows(text: str) -> str:
    if text != "all" and not (text.isascii() and text.isdigit() and int(text)):
        raise InputError(f"--windows {quote(text)} is neither a number from 1 on nor all.")
    return text


Windows = Annotated[
    str,
    typer.Option(
        metavar="N|all",
        callback=_check_windows,
        help="Of a long text, read the N windows that match a question best, or all.",
    ),
]


def _check_without(names: str) -> str:
    chosen({}, names)
    return names


def _check_template(text: str | None) -> str | None:
    from loraqa.prompt.template import CHAT, Template

    if text not in (None, CHAT):
        Template(text)
    return text


Prompts = Annotated[
    str | None,
    typer.Option(
        "--template",
        callback=_check_template,
        help="Prompt template; chat is the model's own; default: that of the training, if any.",
    ),
]
Without = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        callback=_check_without,
        help="Accelerations to leave out: names with commas between, or all.",
    ),
]


def _check_strategy(name: str) -> str:
    check_strategy(name)
    return name


def _check_strategies(names: str) -> str:
    for name in strategy_names(names):
        check_strategy(name)
    return names


Strategy = Annotated[
    str,
    typer.Option(
        callback=_check_strategy, help="Decoding strategy, such as span, beam:4 or top-p:0.9."
    ),
]


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


@app.command()
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

    with _importing():
        from loraqa.demo.run import run_demo

    result = run_demo(out, _console(stderr=as_json), model=model, train=train, dev=dev)
    if as_json:
        _print_json(result.to_json())


@app.command()
def inspect(
    model: Annotated[
        str, typer.Option(help="Base model: a folder, a GGUF file, or a name on the hub.")
    ],
    data: Data,
    examples: Annotated[int, typer.Option("-n", help="Number of contexts to show.", min=0)] = 3,
    template: Prompts = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt and answer in tokens; default: the model's limit.", min=1
        ),
    ] = None,
    stride: Annotated[
        int, typer.Option(help="Tokens that two windows share.", min=0)
    ] = DEFAULT_STRIDE,
    on_bad: OnBad = "stop",
) -> None:
    """Show tokens, mask and tree of some contexts; measure all."""
    from loraqa.model.source import ModelSource, choose_max_length, load_tokenizer, template_of
    from loraqa.prompt.encode import PromptEncoder
    from loraqa.prompt.template import DEFAULT_TEMPLATE, Template
    from loraqa.squad import read_passages

    ModelSource(model)
    dataset = read_passages(data, on_bad=on_bad).to_learn_from(on_bad)

    with _importing():
        from loraqa.report.inspection import inspection
        from loraqa.speed.start import accelerated_preparation

        tokenizer, config = load_tokenizer(model)
        prompt = Template(template_of(template or DEFAULT_TEMPLATE, model))

    tokenizer = accelerated_preparation().wrap_tokenizer(tokenizer)
    encoder = PromptEncoder(tokenizer, prompt, choose_max_length(max_length, config), stride)
    console = _console()
    for piece in inspection(encoder.encode_training(dataset.passages), tokenizer, examples):
        console.print(piece)
    if dataset.control_characters:
        console.print(f"Control characters in the contexts: {dataset.control_characters:,}.")


@app.command()
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
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print one JSON object.")
    ] = False,
) -> None:
    """Fine-tune a model with LoRA.

    docs/settings.md lists all settings.
    """
    from loraqa.train.run import RunDirectory
    from loraqa.train.settings import choose_settings

    flags = {
        "model.source": model,
        "data.train": train,
        "data.dev": dev,
        "data.on_bad": on_bad,
        "seed": seed,
        "model.random_weights": "true" if random_weights else None,
    }
    _check_dry_run(dry_run, out, resume, as_json)
    overrides = settings or []
    if out is None:
        _show_costs(choose_settings([config] if config else [], flags, overrides), as_json)
        return
    chosen = RunDirectory(out).choose_settings(config, flags, overrides, resume)
    if dry_run:
        _show_costs(chosen, as_json)
    else:
        _finetune(chosen, out, resume)


def _check_dry_run(dry_run: bool, out: Path | None, resume: bool, as_json: bool) -> None:
    """Raise `InputError` if options of `train` are missing, or do not go together."""
    if dry_run and resume:
        raise InputError("--dry-run shows what a whole training costs; leave --resume out.")
    if as_json and not dry_run:
        raise InputError("--json prints what a training costs; add --dry-run, or leave it out.")
    if out is None and not dry_run:
        raise InputError("--out is missing; name a folder for the run, or add --dry-run.")


def _show_costs(settings: "RunSettings", as_json: bool) -> None:
    from loraqa.speed.start.process import preparing

    with preparing(settings) as prepare:
        with _importing():
            from loraqa.costs import estimate_costs
            from loraqa.report.tables import costs_table
        costs = estimate_costs(settings, prepare=prepare).to_json()
    if as_json:
        _print_json(costs)
    else:
        _console().print(costs_table(costs).to_rich())


def _finetune(settings: "RunSettings", out: Path, resume: bool) -> None:
    from loraqa.speed.start.process import preparing
    from loraqa.train.run import RunDirectory

    with RunDirectory(out).telling_what_is_kept(), preparing(settings) as prepare:
        with _importing():
            from loraqa.finetune import finetune
        finetune(settings, out, resume=resume, command=_command(), prepare=prepare)
    _tell(f"The adapter is in {out / 'adapter'}; {out / 'report.html'} shows the training.")


@app.command()
def evaluate(
    run: Run,
    data: Data,
    strategy: Strategy = DEFAULT_STRATEGY,
    out: Annotated[
        Path | None, typer.Option(help="File for the predictions; missing folders are made.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report, made if it is missing; default: the run, else a folder "
            "beside --out."
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
    windows: Windows = str(DEFAULT_WINDOWS),
    no_answer_threshold: Threshold = None,
    max_answer_tokens: MaxAnswer = None,
    base: Base = None,
    template: Prompts = None,
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
    from loraqa.files import check_file_writable, check_folder_writable, write_json
    from loraqa.squad import read_passages

    if out:
        check_file_writable(out)
        _check_not_input(out, data)
    if report:
        check_folder_writable(report)
    _check_order(run, data)
    check_source(run)
    dataset = read_passages(data, on_bad=on_bad)

    with _importing():
        from loraqa.answer.evaluate import evaluate as evaluate_reader
        from loraqa.answer.journal import Journal
        from loraqa.answer.outcome import outcome_of
        from loraqa.answer.strategies import parse_strategy
        from loraqa.report.progress import answering_progress
        from loraqa.report.run import keep_outcome
        from loraqa.report.tables import scores_table

    decoding = parse_strategy(strategy)
    reader = _reader(run, base, template, without, windows, max_answer_tokens, no_answer_threshold)
    identity, work = reader.identify(), (dataset.fingerprint, strategy, answers, seed)
    with Journal.beside(out, identity) if out else Journal.in_cache(identity, *work) as journal:
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
                write_json(out.with_suffix(".na_prob.json"), result.no_answer_probabilities)
    if as_json:
        _print_json(result.to_json())
    else:
        _console().print(scores_table(result.to_json()).to_rich())
    if folder := report or _report_folder(run, out):
        outcome = outcome_of(result, dataset, model=run, strategy=strategy, command=_command())
        page = keep_outcome(outcome, folder)
        if page and not as_json:
            _tell(f"The report is {page}.")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="JSON file: answers by question id.")],
    data: Data,
    no_answer_probabilities: Annotated[
        Path | None, typer.Option(help="JSON file: probabilities of no answer by question id.")
    ] = None,
    on_bad: OnBad = "stop",
    as_json: Json = False,
) -> None:
    """Compute official exact match and F1 of a predictions file."""
    from loraqa.squad import (
        check_ids,
        read_no_answer_probabilities,
        read_passages,
        read_predictions,
    )
    from loraqa.squad import score as official_score

    answers = read_predictions(predictions)
    probabilities = (
        read_no_answer_probabilities(no_answer_probabilities) if no_answer_probabilities else None
    )
    dataset = read_passages(data, on_bad=on_bad)
    check_ids(dataset, answers)
    scores = official_score(answers, dataset, probabilities).to_json()
    if as_json:
        _print_json(scores)
    else:
        from loraqa.report.tables import scores_table

        _console().print(scores_table(scores).to_rich())


@app.command()
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
    windows: Windows = str(DEFAULT_WINDOWS),
    max_answer_tokens: MaxAnswer = None,
    base: Base = None,
    template: Prompts = None,
    without: Without = "",
    seed: Seed = 0,
    on_bad: OnBad = "stop",
    as_json: Json = False,
) -> None:
    """Compare the quality and diversity of decoding strategies.

    If it is interrupted, the same command goes on from there.
    """
    from loraqa.adapter.find import check_source
    from loraqa.files import check_folder_writable, one_writer
    from loraqa.squad import read_passages

    _check_order(run, data)
    check_source(run)
    folder = out or _place_for(run, "comparison")
    check_folder_writable(folder)
    dataset = read_passages(data, on_bad=on_bad)

    with _importing():
        from loraqa.answer.compare import compare as compare_strategies
        from loraqa.answer.evaluate import sample_questions
        from loraqa.answer.journal import Journal
        from loraqa.answer.strategies import parse_strategy
        from loraqa.report.comparison import save_comparison
        from loraqa.report.progress import answering_progress
        from loraqa.report.run import rewrite_report
        from loraqa.report.tables import strategies_table

    decodings = [parse_strategy(name) for name in strategy_names(strategies)]
    if questions:
        dataset = sample_questions(dataset, questions, seed)
    reader = _reader(run, base, template, without, windows, max_answer_tokens)
    journal = Journal.beside(folder / "comparison.json", reader.identify())
    with one_writer(folder), journal:
        with answering_progress(journal) as progress:
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
    page = rewrite_report(run if out is None and _is_run(run) else folder)
    if as_json:
        _print_json({"strategies": [row.to_json() for row in compared]})
    else:
        _console().print(strategies_table(compared).to_rich())
        _tell(f"Words, tables and plot are in {folder}.")
        if page:
            _tell(f"The report is {page}.")


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(help="Run, or a folder that evaluate or compare wrote a report into.")
    ],
) -> None:
    """Write the report of a run again, from its files."""
    from loraqa.report.run import write_report

    _tell(f"The report is {write_report(run)}.")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="Run, or folder of a report, with an evaluation.")],
    second: Annotated[Path, typer.Argument(help="Another one, evaluated on the same data.")],
    out: Annotated[
        Path | None, typer.Option(help="CSV file for the questions that were answered differently.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two evaluations question by question."""
    from loraqa.analysis.diff import diff as compare_outcomes
    from loraqa.analysis.outcome import Outcome
    from loraqa.files import check_file_writable, write_text
    from loraqa.report.diff import all_tables, changed_csv, names_of

    if out:
        check_file_writable(out)
    difference = compare_outcomes(Outcome.load(first), Outcome.load(second))
    if out:
        write_text(out, changed_csv(difference))
    if as_json:
        _print_json(asdict(difference))
        return
    console = _console()
    for table in all_tables(difference, names_of(first, second)):
        console.print(table.to_rich())


@app.command()
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
    windows: Windows = str(DEFAULT_WINDOWS),
    no_answer_threshold: Threshold = None,
    max_answer_tokens: MaxAnswer = None,
    base: Base = None,
    template: Prompts = None,
    without: Without = "",
    seed: Seed = 0,
    text_out: Annotated[
        Path | None,
        typer.Option(help="File for the text of a PDF, HTML or DOCX, in which offsets count."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask questions about a text."""
    from loraqa.adapter.find import check_source
    from loraqa.documents import read_document
    from loraqa.files import check_file_writable, write_text

    _check_order_of_ask(run, questions, context_file)
    if text_out:
        check_file_writable(text_out)
        _check_not_input(text_out, str(context_file), "--text-out")
    check_source(run)
    document = read_document(context_file)
    if text_out:
        write_text(text_out, document.text)

    with _importing():
        from loraqa.answer.reader import check_asked
        from loraqa.answer.strategies import parse_strategy
        from loraqa.report.answers import answer_lines, answers_json
        from loraqa.report.progress import answering_progress

    check_asked(document.text, questions)
    decoding = parse_strategy(strategy)
    reader = _reader(run, base, template, without, windows, max_answer_tokens, no_answer_threshold)
    with answering_progress() if len(document.text) > _LONG else nullcontext() as progress:
        found = reader.candidates(
            document.text, questions, answers, decoding, seed=seed, progress=progress
        )
    if as_json:
        _print_json(answers_json(document, found, answers))
    else:
        console = _console()
        for line in answer_lines(document, questions, found):
            # In a file or a pipe a line stays a line.
            console.print(line, soft_wrap=not console.is_terminal)


@app.command()
def serve(
    run: Run,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; 0.0.0.0 lets other machines connect, with --token-file."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 is any free one.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token that requests must bring.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name of this server, as behind a proxy."),
    ] = None,
    timeout: Annotated[
        int, typer.Option(help="Seconds for a request, waiting included.", min=1)
    ] = 120,
    windows: Windows = str(DEFAULT_WINDOWS),
    no_answer_threshold: Threshold = None,
    base: Base = None,
    template: Prompts = None,
    without: Without = "",
) -> None:
    """Answer questions on a web page and over HTTP, until Ctrl-C."""
    from loraqa.adapter.find import check_source

    check_source(run)
    try:
        with _importing():
            from loraqa.serve import server
            from loraqa.serve.app import TOKENS_PER_BATCH, Served, create_app
    except ModuleNotFoundError as error:
        raise LoraqaError(
            f"`loraqa serve` needs {error.name}; install it with `pip install -e '.[serve]'`."
        ) from None

    token = server.read_token(token_file) if token_file else None
    with server.listen(host, port, token) as listener:
        reader = _reader(run, base, template, without, windows, None, no_answer_threshold)
        reader = replace(reader, tokens_per_batch=min(reader.tokens_per_batch, TOKENS_PER_BATCH))
        app = create_app(
            reader,
            Served.describe(run, reader),
            hosts=[host, *(allow_host or [])],
            token=token,
            seconds=timeout,
        )
        _tell(f"Answering at {server.address(listener)} until Ctrl-C.")
        server.run(app, listener)


@app.command()
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
    without: Without = "",
    seed: Seed = 0,
    on_bad: OnBad = "stop",
    as_json: Json = False,
) -> None:
    """Show what LoRA learned, and what each part of it is worth."""
    from loraqa.adapter.find import adapter_of
    from loraqa.files import check_folder_writable, one_writer
    from loraqa.squad import read_passages

    for each in (run, *(against or ())):
        adapter_of(each)
    folder = out or _place_for(run, "analysis")
    check_folder_writable(folder)
    dataset = read_passages(data, on_bad=on_bad) if data else None

    with _importing():
        from loraqa.analyze import analyze as analyze_adapter
        from loraqa.analyze import effects
        from loraqa.answer.evaluate import sample_questions
        from loraqa.answer.strategies import parse_strategy
        from loraqa.report.learned import findings, save_learned, tables
        from loraqa.report.progress import answering_progress
        from loraqa.report.run import rewrite_report

    with one_writer(folder):
        with status_line(f"Loading {run} …"):
            learned = analyze_adapter(run, base=base, against=against or ())
        if dataset:
            sample = sample_questions(dataset, questions, seed)
            with answering_progress() as progress:
                found = effects(
                    run,
                    sample,
                    parse_strategy(strategy),
                    base=base,
                    without=without,
                    seed=seed,
                    progress=progress,
                )
            learned = replace(learned, effects=found)
        save_learned(learned, folder)
    page = rewrite_report(run if out is None and _is_run(run) else folder)
    if as_json:
        _print_json(learned.to_json())
        return
    console = _console()
    for paragraph in findings(learned):
        console.print(f"{paragraph}\n")
    for table in tables(learned):
        console.print(table.to_rich())
    _tell(f"Words, tables, plots and JSON are in {folder}.")
    if page:
        _tell(f"The report is {page}.")


@app.command()
def export(
    run: Trained,
    out: Annotated[Path, typer.Option(help="New folder.")],
    format: Annotated[
        Literal["peft", "merged"],
        typer.Option(help="The adapter alone, or a transformers model in float32."),
    ] = "peft",
    base: Base = None,
) -> None:
    """Write the adapter for PEFT, or the merged model."""
    from loraqa.adapter.find import adapter_of
    from loraqa.files import check_new_folder

    adapter_of(run)
    check_new_folder(out)

    with _importing():
        from loraqa.answer.export import export_adapter, export_merged

    if format == "peft":
        export_adapter(run, out, base=base)
        _tell(f"The adapter is in {out}; PEFT loads it as it is.")
    else:
        change = export_merged(run, out, base=base)
        _tell(
            f"The merged model is in {out}, in float32, because bfloat16 would round parts of the "
            f"update away. Merging changed no logit by more than {change:.2g}."
        )


def main() -> NoReturn:
    """Run the command line. Every error is one sentence, and the exit status says its kind."""
    _open_closed_streams()
    _share_busy_cores()
    show_notices()
    # By default Python would end at once and leave temporary files.
    signal.signal(signal.SIGTERM, _terminate)
    # A process in the background ignores Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        # Without arguments Typer shows the help.
        status = app(prog_name="loraqa", standalone_mode=not sys.argv[1:])
    except _UsageError as error:
        _fail(_explain_usage(error), InputError.exit_code)
    except (LoraqaError, OSError) as error:
        _fail(*explain(error))
    except KeyboardInterrupt:
        raise SystemExit(_status_of(signal.SIGINT)) from None
    raise SystemExit(status or 0)


def _explain_usage(error: typer.BadParameter) -> str:
    command = error.ctx.command_path if error.ctx else "loraqa"
    wrong = error.format_message().rstrip(".")
    return f"{wrong}; `{command} --help` tells what can be given."


def _open_closed_streams() -> None:
    """Discard what is written to a stream that is closed, as after `>&-`: Python makes it None."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def _share_busy_cores() -> None:
    """Let threads sleep, not spin, while they wait for one another, if other processes are busy.

    A spinning thread keeps a core that the awaited thread of its own process needs. OpenMP reads
    this once, when PyTorch is imported.
    """
    with suppress(AttributeError, OSError):
        if os.getloadavg()[0] > _BUSY:
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _terminate(number: int, *_: object) -> NoReturn:
    _say_stopped(number)
    raise SystemExit(_status_of(number))


def _interrupt(number: int, *_: object) -> NoReturn:
    """Raise `KeyboardInterrupt` once; a further Ctrl-C would interrupt the cleaning up."""
    signal.signal(number, signal.SIG_IGN)
    _say_stopped(number)
    raise KeyboardInterrupt


def _status_of(number: int) -> int:
    """Return the exit status that shells use for a process stopped by a signal."""
    return 128 + number


def _say_stopped(number: int) -> None:
    # Not by `sys.stderr`, which the signal may have interrupted while it was writing.
    with suppress(OSError):
        os.write(
            sys.stderr.fileno(), f"loraqa: Stopped by {signal.Signals(number).name}.\n".encode()
        )


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"loraqa: {message}\n")
    raise SystemExit(status)


def _check_order(run: Path, data: str) -> None:
    """Raise `InputError` if the data were given as the run, and the run as the data."""
    if run.is_file() and Path(data).is_dir():
        raise InputError(
            f"{run} is a file and {data} a folder; give the folder of the run first, and the file "
            "with --data."
        )


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


def _check_not_input(out: Path, data: str, option: str = "--out") -> None:
    """Raise `InputError` if writing `out` would overwrite the data."""
    if out.exists() and Path(data).exists() and out.samefile(data):
        raise InputError(f"{option} {out} is the data file itself; name another file.")


def _place_for(source: Path, name: str) -> Path:
    """Return a path inside a run; else in the working directory, not in an adapter or model."""
    return (source if _is_run(source) else Path()) / name


def _is_run(source: Path) -> bool:
    from loraqa.adapter.find import find_adapter

    return find_adapter(source) == source / "adapter"


def _report_folder(source: Path, out: Path | None) -> Path | None:
    """Return the folder of an evaluation's report: the run, else one beside the predictions."""
    if _is_run(source):
        return source
    return out.with_name(f"{out.stem}-report") if out else None


def _reader(
    run: Path,
    base: str | None,
    template: str | None,
    without: str,
    windows: str,
    max_answer_tokens: int | None,
    no_answer_threshold: float | None = None,
) -> "Reader":
    """Load a reader, and change what the user chose."""
    from loraqa.reader import Reader

    with status_line(f"Loading {run} …"):
        reader = Reader.load(run, base=base, template=template, without=without)
    chosen: dict[str, Any] = {"most_windows": None if windows == "all" else int(windows)}
    if max_answer_tokens is not None:
        chosen["max_answer_tokens"] = max_answer_tokens
    if no_answer_threshold is not None:
        chosen["no_answer_threshold"] = no_answer_threshold
    return replace(reader, **chosen)


@contextmanager
def _importing() -> Iterator[None]:
    """Import what computes, which takes seconds."""
    with status_line("Loading PyTorch …"), importing():
        yield


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=False)


def _tell(line: str) -> None:
    """Write a line to standard error. It is not broken, so that a path in it can be copied."""
    sys.stderr.write(line + "\n")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def _command() -> str:
    return shlex.join(["loraqa", *sys.argv[1:]])


if __name__ == "__main__":
    main()
