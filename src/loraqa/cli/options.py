"""Options and arguments that several commands share, and how their values are checked."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from loraqa.answer.strategies import check_strategy
from loraqa.errors import InputError, quote
from loraqa.speed import chosen

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

Quantisation = Annotated[
    Literal["none", "int8"] | None,
    typer.Option(help="Frozen weights in full, or in int8; default: as in the training."),
]

Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:1|…",
        help="Where the model computes; auto is a GPU if there is one.",
    ),
]

Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="Numbers in which the model computes; auto is bfloat16 where it is fast, else "
        "float32; default: as in the training."
    ),
]

TokensPerBatch = Annotated[
    int | None,
    typer.Option(
        help="Most tokens, read and written, that are in memory at once; fewer take less memory.",
        min=1,
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

Ray = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Work on the Ray cluster at this address, on that of this machine (auto), or without "
        "an address on one that is started here.",
    ),
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


def _parse_windows(given: str | int) -> int | None:
    # The default is parsed, too, and is a number.
    text = str(given)
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise InputError(f"--windows {quote(text)} is neither a number from 1 on nor all.")
    return int(text)


Windows = Annotated[
    int | None,
    typer.Option(
        metavar="N|all",
        parser=_parse_windows,
        help="Of a long text, read the N windows that match a question best, or all.",
    ),
]

Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=RUN",
        help="Run or adapter of the same base, by a name; repeatable.",
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
        help="Prompt template; twice has the context twice, chat is the model's own; default: "
        "that of the training, if any.",
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


Strategy = Annotated[
    str,
    typer.Option(
        callback=_check_strategy, help="Decoding strategy, such as span, beam:4 or top-p:0.9."
    ),
]
