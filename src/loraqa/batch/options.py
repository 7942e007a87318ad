"""What decides the answers besides the questions. Importing this loads no PyTorch."""

from dataclasses import dataclass
from typing import Any, Literal

from loraqa.answer.strategies import DEFAULT_STRATEGY
from loraqa.batch.plan import DEFAULT_ROWS
from loraqa.reader_options import ReaderOptions


@dataclass(frozen=True)
class Options:
    """A reader, and how it answers a file.

    Attributes:
        reader: the model, and how it reads.
        strategy: the name of a decoding strategy.
        seed: random seed of strategies that sample.
        rows: how many rows are answered together (see `make_plan`).
        on_bad: whether a question that leaves no room for a context stops the work.
    """

    reader: ReaderOptions
    strategy: str = DEFAULT_STRATEGY
    seed: int = 0
    rows: int = DEFAULT_ROWS
    on_bad: Literal["stop", "skip"] = "stop"

    def facts(self) -> dict[str, Any]:
        """Return what may not change when a job goes on."""
        names = ("strategy", "seed", "rows")
        return {**self.reader.facts(), **{name: getattr(self, name) for name in names}}
