"""The HTTP API and the web page: one model that answers one request after another."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loraqa import __version__
from loraqa.adapter.find import find_adapter
from loraqa.answer.reader import Answered, Reader
from loraqa.answer.strategies import STRATEGIES
from loraqa.errors import InputError, LoraqaError

MAX_QUESTIONS = 50
MAX_BODY_BYTES = 256 * 1024

_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


class Asked(BaseModel):
    """A request: questions about a text, the decoding strategy, and the seed for sampling."""

    model_config = ConfigDict(extra="forbid", strict=True)

    context: str
    questions: list[str] = Field(min_length=1, max_length=MAX_QUESTIONS)
    strategy: str = "greedy"
    seed: int = Field(0, ge=0)


class Answers(BaseModel):
    """The reply: one answer per question, in order. Offsets count Unicode code points."""

    answers: list[Answered]


class Served(BaseModel):
    """The served model and its limits.

    Attributes:
        base: the base model.
        adapter: the adapter, None if the base model is served without one.
        template: the template of the prompts.
        max_length: length of the model's input in tokens; longer contexts are read in windows.
        max_answer_tokens: length of the longest answer in tokens.
        strategies: names of decoding strategies; docs/decoding.md explains how to combine them
            and how to give them numbers.
        max_questions, max_body_bytes: limits of one request.
    """

    base: str
    adapter: str | None
    template: str
    max_length: int
    max_answer_tokens: int
    strategies: tuple[str, ...] = STRATEGIES
    max_questions: int = MAX_QUESTIONS
    max_body_bytes: int = MAX_BODY_BYTES

    @classmethod
    def describe(cls, source: str | Path, reader: Reader) -> "Served":
        """Describe the reader that `Reader.load` returned for `source`."""
        adapter = find_adapter(Path(source).expanduser())
        return cls(
            base=reader.runner.model.config.name_or_path,
            adapter=str(adapter) if adapter else None,
            template=reader.template.text,
            max_length=reader.max_length,
            max_answer_tokens=reader.max_answer_tokens,
        )


class Health(BaseModel):
    """The server is running and its model is loaded."""

    status: Literal["ok"] = "ok"


class Problem(BaseModel):
    """An error, in one sentence."""

    error: str


def create_app(reader: Reader, served: Served) -> FastAPI:
    """Return the API for a reader. Every error is a `Problem` with a fitting status."""
    # FastAPI's documentation pages would load scripts from other sites.
    app = FastAPI(title="loraqa", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(_LimitBody)
    for kind in (RequestValidationError, HTTPException, LoraqaError, Exception):
        app.add_exception_handler(kind, _explain)
    # A single thread, so that each request gets all cores while the others wait.
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")

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

    @app.post(
        "/api/answer", responses={status: {"model": Problem} for status in (413, 422, 500, 503)}
    )
    async def answer(asked: Asked) -> Answers:
        """Answer questions about a text, after all earlier requests."""
        read = partial(
            reader.answer, asked.context, asked.questions, asked.strategy, seed=asked.seed
        )
        try:
            return Answers(answers=await asyncio.get_running_loop().run_in_executor(worker, read))
        except asyncio.CancelledError:
            raise HTTPException(503, "The server is stopping; ask again later.") from None

    return app


class _LimitBody:
    """Refuses bodies above `MAX_BODY_BYTES`, whatever the headers say, without storing them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received <= MAX_BODY_BYTES:
                return message
            # Read the rest, because a client does not read the reply while it is sending.
            while message.get("more_body"):
                message = await receive()
            raise HTTPException(
                413,
                f"The request is larger than {MAX_BODY_BYTES // 1024} KiB; send a shorter text.",
            )

        await self._app(scope, limited, send)


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """Explain an error in one sentence; unexpected errors go only to the server's log."""
    match error:
        case RequestValidationError():
            return _problem(422, _first_problem(error.errors()[0]))
        case HTTPException():
            return _problem(error.status_code, error.detail.rstrip(".") + ".", error.headers)
        case InputError():
            return _problem(422, str(error))
        case LoraqaError():
            return _problem(500, str(error))
    return _problem(500, "The server failed to answer this request; see its log.")


def _problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(Problem(error=sentence).model_dump(), status, headers)


def _first_problem(problem: dict[str, Any]) -> str:
    """Explain the first problem of a request's body in one sentence."""
    if problem["type"] == "json_invalid":
        return f"The body is not valid JSON: {problem['ctx']['error']}."
    place = ".".join(map(str, problem["loc"][1:]))
    if not place:
        return "The body must be a JSON object, sent with Content-Type: application/json."
    return f"{place}: {problem['msg']}."
