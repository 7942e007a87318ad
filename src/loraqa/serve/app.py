"""The HTTP API and the web page: one model, which answers one request after another."""

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
    """Questions about a text, how to decode the answers, and what draws where it draws."""

    model_config = ConfigDict(extra="forbid", strict=True)

    context: str
    questions: list[str] = Field(min_length=1, max_length=MAX_QUESTIONS)
    strategy: str = "greedy"
    seed: int = Field(0, ge=0)


class Answers(BaseModel):
    """One answer to each question, in their order. Offsets count Unicode code points."""

    answers: list[Answered]


class Served(BaseModel):
    """What is served, and what it takes.

    Attributes:
        base: the base model; `adapter` is None where it is served without one.
        template: how prompts are written.
        max_length: tokens read at once; longer contexts are read in windows.
        max_answer_tokens: the longest answer.
        strategies: names that may be joined and given numbers, as in docs/decoding.md.
        max_questions, max_body_bytes: of one request.
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
        """What `Reader.load` made of `source`."""
        adapter = find_adapter(Path(source).expanduser())
        return cls(
            base=reader.runner.model.config.name_or_path,
            adapter=str(adapter) if adapter else None,
            template=reader.template.text,
            max_length=reader.max_length,
            max_answer_tokens=reader.max_answer_tokens,
        )


class Health(BaseModel):
    """The server is up and its model loaded."""

    status: Literal["ok"] = "ok"


class Problem(BaseModel):
    """What went wrong, in one sentence."""

    error: str


def create_app(reader: Reader, served: Served) -> FastAPI:
    """The API around a reader. Every error is a `Problem` with a fitting status."""
    # The pages that FastAPI shows its OpenAPI schema on would load scripts from elsewhere.
    app = FastAPI(title="loraqa", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(_LimitBody)
    for kind in (RequestValidationError, HTTPException, LoraqaError, Exception):
        app.add_exception_handler(kind, _explain)
    # A single thread: the model has all cores for one request at a time, and the others wait.
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return _PAGE

    @app.get("/health")
    async def health() -> Health:
        """Answers at once, also while the model is at work."""
        return Health()

    @app.get("/api/model")
    async def model() -> Served:
        """What is served, and what it takes."""
        return served

    @app.post(
        "/api/answer", responses={status: {"model": Problem} for status in (413, 422, 500, 503)}
    )
    async def answer(asked: Asked) -> Answers:
        """Answer questions about a text, after the requests that came before."""
        read = partial(
            reader.answer, asked.context, asked.questions, asked.strategy, seed=asked.seed
        )
        try:
            return Answers(answers=await asyncio.get_running_loop().run_in_executor(worker, read))
        except asyncio.CancelledError:
            raise HTTPException(503, "The server is stopping; ask again later.") from None

    return app


class _LimitBody:
    """Refuses bodies above `MAX_BODY_BYTES`, whatever their headers say, and never holds one."""

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
            # A client that is still sending would not see the answer.
            while message.get("more_body"):
                message = await receive()
            raise HTTPException(
                413,
                f"The request is larger than {MAX_BODY_BYTES // 1024} KiB; send a shorter text.",
            )

        await self._app(scope, limited, send)


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """An error in one sentence; what nobody foresaw goes to the server's log, not to the client."""
    match error:
        case RequestValidationError():
            return _problem(422, _first_problem(error.errors()[0]))
        case HTTPException():
            return _problem(error.status_code, error.detail.rstrip(".") + ".", error.headers)
        case InputError():
            return _problem(422, str(error))
        case LoraqaError():
            return _problem(500, str(error))
    return _problem(500, "The server failed at this request; its log says why.")


def _problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(Problem(error=sentence).model_dump(), status, headers)


def _first_problem(problem: dict[str, Any]) -> str:
    """One sentence on the first thing that is wrong with a body."""
    if problem["type"] == "json_invalid":
        return f"The body is not valid JSON: {problem['ctx']['error']}."
    place = ".".join(map(str, problem["loc"][1:]))
    if not place:
        return "The body must be a JSON object, sent with Content-Type: application/json."
    return f"{place}: {problem['msg']}."
