"""Errors of the API: JSON with one sentence of bounded length."""

from collections.abc import Mapping

from fastapi.responses import JSONResponse
from pydantic import BaseModel

MOST_CHARACTERS = 500


class Problem(BaseModel):
    """An error, in one sentence."""

    error: str


def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error as a response."""
    if len(sentence) > MOST_CHARACTERS:
        sentence = f"{sentence[:MOST_CHARACTERS]}…"
    return JSONResponse(Problem(error=sentence).model_dump(), status, headers)
