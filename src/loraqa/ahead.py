"""Training data read and encoded by a process of its own, while this one imports PyTorch.

with preparing(settings) as prepared:
    from loraqa.finetune import finetune

    finetune(settings, run, data=prepared)
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from loraqa.errors import InputError, LoraqaError
from loraqa.files import read_json, write_json, write_text
from loraqa.notices import show_notices
from loraqa.train.settings import RunSettings, load_settings

if TYPE_CHECKING:
    from loraqa.train.data import TrainingData

# What the two processes leave each other in a folder.
_SETTINGS, _ENCODED, _OUTCOME = "settings.yaml", "encoded.safetensors", "outcome.json"


@contextmanager
def preparing(settings: RunSettings) -> Iterator[Callable[[], "TrainingData"]]:
    """Begin to read and encode the training data of a run; yields what waits for it.

    What is yielded raises what `read_training_data` would, or `LoraqaError` where the process
    ended otherwise. On leaving, a process that still runs is stopped.
    """
    with TemporaryDirectory(prefix="loraqa-") as name:
        folder = Path(name)
        write_text(folder / _SETTINGS, settings.with_full_paths().to_yaml())
        # Python's -P: nothing in the working directory is taken for a library. In a session of its
        # own, it gets no Ctrl-C.
        command = [sys.executable, "-P", "-m", "loraqa.ahead", name]
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                yield lambda: _collect(process, folder)
            finally:
                process.kill()


def _collect(process: "subprocess.Popen[bytes]", folder: Path) -> "TrainingData":
    from loraqa.prompt.cache import load_encoded
    from loraqa.train.data import TrainingData

    status = process.wait()
    if not (folder / _OUTCOME).exists():
        raise LoraqaError(
            f"The process that was to read the training data ended with status {status}; see that "
            "there is enough memory, and room for temporary files, and start again."
        )
    outcome = read_json(folder / _OUTCOME)
    if "error" in outcome:
        kind = InputError if outcome["status"] == InputError.exit_code else LoraqaError
        raise kind(outcome["error"])
    return TrainingData(outcome["facts"], load_encoded(folder / _ENCODED))


def _prepare(folder: Path) -> None:
    # A tokenizer needs no PyTorch, which transformers would take seconds to import.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from loraqa.prompt.cache import save_encoded
    from loraqa.train.data import read_training_data

    try:
        data = read_training_data(load_settings([folder / _SETTINGS]))
    except LoraqaError as error:
        outcome = {"error": str(error), "status": error.exit_code}
    else:
        save_encoded(data.encoded, folder / _ENCODED)
        outcome = {"facts": data.facts}
    write_json(folder / _OUTCOME, outcome)


if __name__ == "__main__":
    show_notices()
    _prepare(Path(sys.argv[1]))
