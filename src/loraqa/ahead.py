"""Training data read and encoded by a process of its own, while this one imports PyTorch.

with preparing(settings) as prepared:
    from loraqa.finetune import finetune

    prepared.check()
    finetune(settings, run, data=prepared)
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, Any

from loraqa.errors import InputError, LoraqaError, explain
from loraqa.files import read_json, write_json
from loraqa.notices import show_notices
from loraqa.train.settings import RunSettings, parse_settings

if TYPE_CHECKING:
    from loraqa.train.data import TrainingData

# What the two processes leave each other in a folder.
_SETTINGS, _ENCODED, _OUTCOME = "settings.json", "encoded.safetensors", "outcome.json"


class Preparation:
    """Training data that another process reads and encodes."""

    def __init__(self, process: subprocess.Popen[bytes], folder: TemporaryDirectory[str]) -> None:
        self._process = process
        self._folder = folder

    def check(self) -> None:
        """Raise what went wrong, if something has by now.

        Raises:
            InputError: as `read_training_data`.
            LoraqaError: the process ended otherwise.
        """
        if self._process.poll() is not None:
            self._facts()

    def __call__(self) -> "TrainingData":
        """The data, once they are there, for one taker; raises as `check`."""
        from loraqa.prompt.cache import load_encoded
        from loraqa.train.data import TrainingData

        data = TrainingData(self._facts(), load_encoded(Path(self._folder.name) / _ENCODED))
        self._folder.cleanup()
        return data

    def _facts(self) -> dict[str, Any]:
        status = self._process.wait()
        outcome = Path(self._folder.name) / _OUTCOME
        if not outcome.exists():
            raise LoraqaError(
                f"The process that was to read the training data ended with status {status}; see "
                "that there is enough memory, and start again."
            )
        told = read_json(outcome)
        if "error" in told:
            wrong_input = told["status"] == InputError.exit_code
            raise (InputError if wrong_input else LoraqaError)(told["error"])
        facts: dict[str, Any] = told["facts"]
        return facts


@contextmanager
def preparing(settings: RunSettings) -> Iterator[Preparation]:
    """Begin to read and encode the training data of a run. On leaving, what still runs is stopped.

    Args:
        settings: of the run, with full paths.
    """
    folder = TemporaryDirectory(prefix="loraqa-")
    with folder as name:
        write_json(Path(name) / _SETTINGS, settings.model_dump(mode="json"))
        # Python's -P: nothing in the working directory is taken for a library. In a session of its
        # own, it gets no Ctrl-C.
        command = [sys.executable, "-P", "-m", "loraqa.ahead", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
            try:
                yield Preparation(process, folder)
            finally:
                process.kill()
                process.wait()


def _prepare(folder: Path) -> None:
    from loraqa.prompt.cache import save_encoded
    from loraqa.train.data import read_training_data

    try:
        data = read_training_data(parse_settings(read_json(folder / _SETTINGS)))
        save_encoded(data.encoded, folder / _ENCODED)
        outcome: dict[str, Any] = {"facts": data.facts}
    except (LoraqaError, OSError) as error:
        message, status = explain(error)
        outcome = {"error": message, "status": status}
    write_json(folder / _OUTCOME, outcome)


def _import_tokenizers_alone() -> None:
    """Import what loads tokenizers without PyTorch, which they do not need: that takes seconds."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401

    # Other libraries look there for whether it is loaded.
    del sys.modules["torch"]


def _end_with_the_other(folder: Path) -> None:
    """Wait until the other process is gone, however it ended, and leave nothing behind."""
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Prepare what the settings in a folder ask for, and leave it there."""
    folder = Path(sys.argv[1])
    Thread(target=_end_with_the_other, args=[folder], daemon=True).start()
    show_notices()
    _import_tokenizers_alone()
    _prepare(folder)


if __name__ == "__main__":
    main()
