"""`loraqa serve`."""

from pathlib import Path
from typing import Annotated

import typer

from loraqa.cli.adapters import named_adapters, with_own_name
from loraqa.cli.options import (
    Adapters,
    Base,
    Device,
    Dtype,
    Prompts,
    Quantisation,
    Run,
    Threshold,
    TokensPerBatch,
    Windows,
    Without,
)
from loraqa.cli.output import importing_pytorch, tell
from loraqa.cli.readers import load_reader
from loraqa.errors import InputError, LoraqaError
from loraqa.notices import status_line
from loraqa.prompt.defaults import DEFAULT_WINDOWS

# Each product of matrices is so small that a processor can stop within a second.
_TOKENS_PER_BATCH = 4096


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
    adapter: Adapters = None,
    windows: Windows = DEFAULT_WINDOWS,
    no_answer_threshold: Threshold = None,
    base: Base = None,
    quantisation: Quantisation = None,
    template: Prompts = None,
    device: Device = "auto",
    dtype: Dtype = None,
    tokens_per_batch: TokensPerBatch = _TOKENS_PER_BATCH,
    without: Without = "",
) -> None:
    """Answer questions on a web page and over HTTP, until Ctrl-C.

    Adapters beside RUN share its base model; a request names the one that is to answer.
    """
    from loraqa.adapter.find import check_source

    check_source(run, base)
    sources = with_own_name(run, named_adapters(adapter)) if adapter else {}
    if sources and quantisation == "int8":
        raise InputError(
            "Several adapters share a base in full precision; leave --quantisation int8 out."
        )
    try:
        with importing_pytorch():
            from loraqa.reader_options import ReaderOptions
            from loraqa.serve import server
            from loraqa.serve.app import Served, create_app
    except ModuleNotFoundError as error:
        raise LoraqaError(
            f"`loraqa serve` needs {error.name}; install it with `pip install -e '.[serve]'`."
        ) from None

    token = server.read_token(token_file) if token_file else None
    with server.listen(host, port, token) as listener:
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
            no_answer_threshold=no_answer_threshold,
        )
        readers = None
        if sources:
            with status_line(f"Loading {', '.join(sources)} …"):
                readers = options.load_several(sources)
            reader = next(iter(readers.values()))
        else:
            reader = load_reader(options)
        app = create_app(
            reader,
            Served.describe(run, reader, sources),
            readers,
            hosts=[host, *(allow_host or [])],
            token=token,
            seconds=timeout,
        )
        tell(f"Answering at {server.address(listener)} until Ctrl-C.")
        server.run(app, listener)
