"""What decides the answers besides the questions. Importing this loads no PyTorch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraqa.adapter.base import weights_hash
from loraqa.adapter.find import find_adapter
from loraqa.adapter.info import INFO
from loraqa.answer.strategies import DEFAULT_STRATEGY
from loraqa.batch.plan import DEFAULT_ROWS
from loraqa.files import sha256
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS
from loraqa.prompt.defaults import DEFAULT_WINDOWS

if TYPE_CHECKING:
    from loraqa.reader import Reader


@dataclass(frozen=True)
class Options:
    """A model, and how it answers.

    Attributes:
        run: a run, an adapter, or a model.
        strategy: the name of a decoding strategy.
        seed: random seed of strategies that sample.
        rows: how many rows are answered together (see `make_plan`).
        on_bad: whether a question that leaves no room for a context stops the work.
        base, quantisation, template, without: as for `Reader.load`.
        windows: how many windows of a long text are read for a question; None reads all.
        max_answer_tokens, no_answer_threshold: as for `Reader`; None is what the run has.
    """

    run: Path
    strategy: str = DEFAULT_STRATEGY
    seed: int = 0
    rows: int = DEFAULT_ROWS
    on_bad: Literal["stop", "skip"] = "stop"
    base: str | None = None
    quantisation: str | None = None
    template: str | None = None
    without: str = ""
    windows: int | None = DEFAULT_WINDOWS
    max_answer_tokens: int | None = None
    no_answer_threshold: float | None = None

    def load(self) -> "Reader":
        """Load the model.

        Raises:
            InputError: as for `Reader.load`.
        """
        from loraqa.reader import Reader

        reader = Reader.load(
            self.run,
            base=self.base,
            quantisation=self.quantisation,
            template=self.template,
            without=self.without,
        )
        chosen = {
            name: value
            for name in ("max_answer_tokens", "no_answer_threshold")
            if (value := getattr(self, name)) is not None
        }
        return replace(reader, most_windows=self.windows, **chosen)

    def facts(self) -> dict[str, Any]:
        """Return what may not change when a work goes on.

        Where the model is, and which accelerations it has, may change.
        """
        names = ("strategy", "seed", "rows", "quantisation", "template", "windows")
        return {
            "model": _hashes(self.run.expanduser()),
            "base": self.base and (weights_hash(self.base) or self.base),
            **{name: getattr(self, name) for name in names},
            "max_answer_tokens": self.max_answer_tokens,
            "no_answer_threshold": self.no_answer_threshold,
        }


def _hashes(run: Path) -> str | list[str]:
    """Return the SHA-256 of an adapter's files, or of a model's weights; else its name."""
    adapter = find_adapter(run)
    if adapter is None:
        return weights_hash(run) or str(run)
    files = [adapter / name for name in (ADAPTER_CONFIG, TENSORS, INFO)]
    return [sha256(file) for file in files if file.exists()]
