"""Which reader a user wants, and how it is loaded. Importing this loads no PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraqa.adapter.base import weights_hash
from loraqa.adapter.find import find_adapter
from loraqa.adapter.info import INFO
from loraqa.files import sha256
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS
from loraqa.prompt.defaults import DEFAULT_WINDOWS

if TYPE_CHECKING:
    from loraqa.answer.readers import Readers
    from loraqa.reader import Reader


@dataclass(frozen=True)
class ReaderOptions:
    """A model, and how it reads.

    Attributes:
        run: a run, an adapter, or a model.
        base, quantisation, template, device, dtype, tokens_per_batch, without: as for
            `Reader.load`.
        windows: how many windows of a long text are read for a question; None reads all.
        max_answer_tokens, no_answer_threshold: as for `Reader`; None is what the run has.
    """

    run: Path
    base: str | None = None
    quantisation: str | None = None
    template: str | None = None
    windows: int | None = DEFAULT_WINDOWS
    max_answer_tokens: int | None = None
    no_answer_threshold: float | None = None
    device: str = "auto"
    dtype: str | None = None
    tokens_per_batch: int | None = None
    without: str = ""

    def load(self) -> "Reader":
        """Load the reader.

        Raises:
            InputError: as for `Reader.load`.
        """
        from loraqa.reader import Reader

        reader = Reader.load(self.run, quantisation=self.quantisation, **self._of_loading())
        return replace(reader, **self._of_readers())

    def load_several(self, sources: Mapping[str, Path]) -> "Readers":
        """Load the readers of several adapters of one base, `run` among them, in full precision.

        Args:
            sources: a run or an adapter folder for each name.

        Raises:
            InputError: as for `load_readers`.
        """
        from loraqa.reader import load_readers

        return load_readers(sources, **self._of_loading()).replaced(**self._of_readers())

    def facts(self) -> dict[str, Any]:
        """Return what answers depend on, as plain JSON values by their names.

        Where the model is and computes, with which accelerations and how many tokens at once, does
        not count.
        """
        names = (
            *("quantisation", "template", "windows", "max_answer_tokens", "no_answer_threshold"),
            "dtype",
        )
        return {
            "model": _hashes(self.run.expanduser()),
            "base": self.base and (weights_hash(self.base) or self.base),
            **{name: getattr(self, name) for name in names},
        }

    def _of_loading(self) -> dict[str, Any]:
        """Return the arguments that `Reader.load` and `load_readers` share."""
        names = ("base", "template", "device", "dtype", "tokens_per_batch", "without")
        return {name: getattr(self, name) for name in names}

    def _of_readers(self) -> dict[str, Any]:
        """Return the attributes of a reader that the user chose."""
        names = ("max_answer_tokens", "no_answer_threshold")
        chosen = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"most_windows": self.windows, **chosen}


def _hashes(run: Path) -> str | list[str]:
    """Return the SHA-256 of an adapter's files, or of a model's weights; else its name."""
    adapter = find_adapter(run)
    if adapter is None:
        return weights_hash(run) or str(run)
    files = [adapter / name for name in (ADAPTER_CONFIG, TENSORS, INFO)]
    return [sha256(file) for file in files if file.exists()]
