"""The HTTP API and the web page: one model that answers one request after another."""

import asyncio
from collections.abc import Collection, Coroutine, Iterable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from loraqa import __version__
from loraqa.adapter.choice import parse_choice
from loraqa.adapter.find import find_adapter
from loraqa.answer.answered import Answered
from loraqa.answer.reader import Reader, check_asked
from loraqa.answer.readers import Readers
from loraqa.answer.strategies import DEFAULT_STRATEGY, MAX_SAMPLES, STRATEGIES, check_strategy
from loraqa.documents import Document, parse_document
from loraqa.errors import InputError, LoraqaError, shortened
from loraqa.model.stop import ComputationStoppedError
from loraqa.serve.guard import (
    DOCUMENT_PATH,
    MAX_BODY_BYTES,
    MAX_DOCUMENT_BYTES,
    Guard,
    LimitBody,
)
from loraqa.serve.problem import Problem, problem
from loraqa.serve.worker import BusyError, Worker

MAX_QUESTIONS = 50
MAX_SEED = 2**63 - 1
MOST_WAITING = 16
SECONDS = 120.0

T = TypeVar("T")

_STATUSES = (400, 401, 413, 421, 422, 429, 500, 503, 504)
_LATER = {"Retry-After": "5"}
_UNREADABLE = (
    "The body cannot be read as JSON: it is not UTF-8, nested too deeply, or holds a number with "
    "thousands of digits."
)
_BYTES = "application/octet-stream"
_DOCUMENT = {"content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}
_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


class Asked(BaseModel):
    """A request: questions about a text, how to decode, and how many answers each may have.

    `adapter` is the name of one of several adapters, or a weighted sum: "law:0.7+news:0.3".
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    context: str
    questions: list[str] = Field(min_length=1, max_length=MAX_QUESTIONS)
    strategy: str = DEFAULT_STRATEGY
    seed: int = Field(0, ge=0, le=MAX_SEED)
    answers: int = Field(1, ge=1, le=MAX_SAMPLES)
    adapter: str | None = None


class Answers(BaseModel):
    """The reply: the best answer to each question, in order. Offsets count Unicode code points.

    `candidates` lists all answers to each question, if more than one was asked for.
    """

    answers: list[Answered]
    candidates: list[list[Answered]] = []


class Text(BaseModel):
    """The text of a document, and the offset at which each page starts, if it has pages."""

    text: str
    pages: list[int]


class Served(BaseModel):
    """The served model and its limits.

    Attributes:
        base: the base model.
        adapter: the folder of the adapter, None if the base model is served without one.
        adapters: the names of several adapters; the first is that of `adapter`, which answers
            requests that name none.
        template: the template of the prompts.
        max_length: length of the model's input in tokens; longer contexts are read in windows.
        max_answer_tokens: length of the longest answer in tokens.
        strategies: names of decoding strategies; docs/decoding.md explains how to combine them
            and how to give them numbers.
        max_questions, max_body_bytes: limits of one request for answers.
        max_document_bytes: limit of a document.
    """

    base: str
    adapter: str | None
    adapters: tuple[str, ...] = ()
    template: str
    max_length: int
    max_answer_tokens: int
    strategies: tuple[str, ...] = STRATEGIES
    max_questions: int = MAX_QUESTIONS
    max_body_bytes: int = MAX_BODY_BYTES
    max_document_bytes: int = MAX_DOCUMENT_BYTES

    @classmethod
    def describe(cls, source: str | Path, reader: Reader, adapters: Iterable[str] = ()) -> "Served":
        """Describe the reader of `source`, and name all adapters if there are several."""
        adapter = find_adapter(Path(source).expanduser())
        return cls(
            base=reader.runner.model.config.name_or_path,
            adapter=str(adapter) if adapter else None,
            adapters=tuple(adapters),
            template=reader.template.text,
            max_length=reader.max_length,
            max_answer_tokens=reader.max_answer_tokens,
        )


class Health(BaseModel):
    """The server is running and its model is loaded."""

    status: Literal["ok"] = "ok"


def create_app(
    reader: Reader,
    served: Served,
    readers: Readers | None = None,
    *,
    hosts: Collection[str] = (),
    token: str | None = None,
    most_waiting: int = MOST_WAITING,
    seconds: float = SECONDS,
) -> FastAPI:
    """Return the API for a reader. Every error is a `Problem` with a fitting status.

    Args:
        reader: answers the questions of requests that name no adapter.
        served: its description.
        readers: answer those of requests that do, if there are several adapters.
        hosts, token: as for `Guard`.
        most_waiting: so many requests may wait while one is computed.
        seconds: time for a request, waiting included.
    """
    # FastAPI's documentation pages would load scripts from other sites.
    app = FastAPI(title="loraqa", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(LimitBody)
    app.add_middleware(Guard, hosts=hosts, token=token)
    for kind in (RequestValidationError, HTTPException, LoraqaError, BusyError, Exception):
        app.add_exception_handler(kind, _explain)
    worker = Worker(most_waiting)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return _PAGE

    @app.get("/health")
    async def health() -> Health:
        """Reply at once, even while the model is answering."""
        return Health()

    @app.get("/api/model")
    async def model() -> Served:
        """Describe the served model and its limits."""
        return served

    @app.post("/api/answer", responses={status: {"model": Problem} for status in _STATUSES})
    async def answer(asked: Asked, request: Request) -> Answers:
        """Answer questions about a text, after all earlier requests."""
        check_asked(asked.context, asked.questions)
        check_strategy(asked.strategy)
        _check_adapter(asked.adapter, readers)

        def read(stop: Event) -> list[list[Answered]]:
            chosen = readers.choose(asked.adapter) if readers and asked.adapter else reader
            return chosen.candidates(
                asked.context,
                asked.questions,
                asked.answers,
                asked.strategy,
                seed=asked.seed,
                stop=stop,
            )

        found = await _while_wanted(request, worker.do(read), seconds)
        best = [first for first, *_ in found]
        return Answers(answers=best, candidates=found if asked.answers > 1 else [])

    # A page of another site cannot send this content type unless the server allows it.
    @app.post(
        DOCUMENT_PATH,
        responses={status: {"model": Problem} for status in (*_STATUSES, 415)},
        openapi_extra={"requestBody": _DOCUMENT | {"required": True}},
    )
    async def document(request: Request, name: str = "") -> Text:
        """Return the text of a PDF, HTML, DOCX or text file, to ask about. `name` is the file's."""
        if request.headers.get("content-type") != _BYTES:
            raise HTTPException(415, f"Send the document with Content-Type: {_BYTES}.")
        # Before a large file is in memory.
        worker.check_room()
        data = await request.body()

        def read(stop: Event) -> Document:
            source = shortened(Path(name).name, 100) or "The document"
            return parse_document(data, source, Path(name).suffix, partial(_check_wanted, stop))

        found = await _while_wanted(request, worker.do(read), seconds)
        return Text(text=found.text, pages=list(found.pages))

    return app


def _check_wanted(stop: Event) -> None:
    """Raise `ComputationStoppedError` if nobody waits for the result any more."""
    if stop.is_set():
        raise ComputationStoppedError("The client has left, or the time is over.")


def _check_adapter(choice: str | None, readers: Readers | None) -> None:
    """Raise `InputError` if a request chooses an adapter that there is not."""
    if choice is None:
        return
    if readers is None:
        raise InputError(
            "This server has no adapters to choose from; leave adapter out, or start the server "
            "with --adapter NAME=RUN."
        )
    parse_choice(choice, readers)


async def _while_wanted(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return the result of `work`; cancel it when the client leaves or the time is over."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        done, _ = await asyncio.wait(
            {working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
    except asyncio.CancelledError:
        raise HTTPException(503, "The server is stopping; ask again later.") from None
    finally:
        working.cancel()
        leaving.cancel()
    if working in done:
        return working.result()
    raise HTTPException(
        504, f"This took longer than {seconds:g} seconds; send less at once, or try again later."
    )


async def _left(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """Explain an error in one sentence; unexpected errors go only to the server's log."""
    match error:
        case RequestValidationError():
            return problem(422, _first_problem(error.errors()[0]))
        case HTTPException(status_code=400):
            return problem(400, _UNREADABLE)
        case HTTPException():
            return problem(error.status_code, error.detail.rstrip(".") + ".", error.headers)
        case BusyError():
            return problem(429, "Too many requests are waiting; ask again later.", _LATER)
        case InputError():
            return problem(422, str(error))
        case LoraqaError():
            return problem(500, str(error))
    return problem(500, "The server failed to answer this request; see its log.")


def _first_problem(first: dict[str, Any]) -> str:
    """Explain the first problem of a request's body in one sentence."""
    if first["type"] == "json_invalid":
        return f"The body is not valid JSON: {first['ctx']['error']}."
    place = shortened(".".join(map(str, first["loc"][1:])), 60)
    if not place:
        return "The body must be a JSON object, sent with Content-Type: application/json."
    return f"{place}: {first['msg']}."
