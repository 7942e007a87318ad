"""Measure how time and memory of an optimizer step grow, for trees and padded batches.

Contexts are text cut to a fixed number of tokens, all with the same number of questions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.base import Task
from benchmarks.harness import Conclusion, Groups, Suite, best
from benchmarks.suites import trainer, trees

OURS, PADDED = "trees", "padded"
SHAPES = {"distilgpt2": (6, 768, 12), "gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16)}
"""Model name to (layers, width, heads)."""

# The kind of precision of padded batches, see `peers.PRECISIONS`.
_KINDS = {"float32": "float32", "bfloat16": "bfloat16 and autocast"}
# Tokens of a question with its answer, to compute the tokens of a padded batch.
_BRANCH_TOKENS = 25


@dataclass(frozen=True)
class Point:
    """A step on `contexts` contexts of `tokens` tokens with `questions` questions each.

    Attributes:
        axis: the quantity that grows.
        value: its value at this point.
        budget: tokens per batch of trees; None is loraqa's default.
        rows: rows per padded batch.
        model: a key of `SHAPES`.
    """

    axis: str
    value: float
    contexts: int = 2
    tokens: int = 150
    questions: int = 5
    budget: int | None = None
    rows: int = 8
    model: str = "gpt2"

    @property
    def file(self) -> str:
        """The name of its file of passages."""
        return f"{self.contexts}-{self.tokens}-{self.questions}.json"

    def name(self, side: str) -> str:
        """Return the name of its group for a side."""
        return f"{self.axis} {self.value:g}, {side}"


def points() -> Iterator[Point]:
    """Yield the points axis by axis; the other sizes keep their defaults."""
    for questions in (1, 2, 5, 10, 20):
        yield Point("questions per context", questions, 20 // questions, questions=questions)
    for tokens in (64, 128, 256, 512, 960):
        yield Point("tokens of a context", tokens, contexts=1, tokens=tokens)
    for rows in (1, 2, 4, 8, 16):
        size = rows * (150 + _BRANCH_TOKENS)
        yield Point("tokens of a batch", size, contexts=4, budget=size, rows=rows)
    for model, (layers, width, _) in SHAPES.items():
        # Without embeddings.
        yield Point("million parameters in layers", 12 * layers * width**2 / 1e6, model=model)


def scaling(folder: Path, steps: int, precision: str) -> Suite:
    """Measure every point for both sides; `folder` has a folder of `base.prepare` per shape."""
    sides = {}
    for point in points():
        task = Task(
            str(folder / point.model),
            "all-linear",
            str(folder / "gpt2" / point.file),
            steps,
            precision,
            reference=str(folder / point.model / f"{point.file}.safetensors"),
        )
        sides[point.name(OURS)] = trees(task, point.budget)
        sides[point.name(PADDED)] = trainer(
            task, [_KINDS[precision]], [point.rows], "group_by_length"
        )
    return Suite("scaling", dict(map(_file, points())), sides, 1, _conclude)


def _file(point: Point) -> tuple[str, tuple[str, dict[str, int]]]:
    size = {
        "contexts": point.contexts,
        "tokens": point.tokens,
        "questions": point.questions,
    }
    return point.file, ("regular", size)


def _conclude(groups: Groups) -> Conclusion:
    def seconds(point: Point, side: str) -> float:
        return best(groups[point.name(side)]).median_seconds

    return Conclusion(
        {
            f"{point.axis} {point.value:g}: padded / trees": seconds(point, PADDED)
            / seconds(point, OURS)
            for point in points()
        }
    )
