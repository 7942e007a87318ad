"""Loading a reader as the user's options say."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraqa.notices import status_line

if TYPE_CHECKING:
    from loraqa.reader import Reader


def load_reader(
    run: Path,
    base: str | None,
    quantisation: str | None,
    template: str | None,
    without: str,
    windows: str,
    max_answer_tokens: int | None,
    no_answer_threshold: float | None = None,
) -> "Reader":
    """Load a reader, and change what the user chose."""
    from loraqa.reader import Reader

    with status_line(f"Loading {run} …"):
        reader = Reader.load(
            run, base=base, quantisation=quantisation, template=template, without=without
        )
    return replace(reader, **changes(windows, max_answer_tokens, no_answer_threshold))


def changes(
    windows: str, max_answer_tokens: int | None, no_answer_threshold: float | None
) -> dict[str, Any]:
    """Return the attributes of a reader that the user chose."""
    chosen: dict[str, Any] = {"most_windows": None if windows == "all" else int(windows)}
    if max_answer_tokens is not None:
        chosen["max_answer_tokens"] = max_answer_tokens
    if no_answer_threshold is not None:
        chosen["no_answer_threshold"] = no_answer_threshold
    return chosen
