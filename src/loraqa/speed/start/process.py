"""Training data read and encoded by a process of its own, while this one imports PyTorch.

with preparing(settings) as prepared:
    prepared.encode_with(load_encoder(settings))

    from loraqa.finetune import finetune

    prepared.check()
    finetune(settings, run, data=prepared)

The other process imports nothing large, but what a data set of the hub takes: it is handed what
encodes, and until then reads the data, and cuts them into words.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from loraqa.errors import InputError, LoraqaError, explain
from loraqa.files import read_json, write_json
from loraqa.notices import show_notices

if TYPE_CHECKING:
    from loraqa.prompt.encode import PromptEncoder
    from loraqa.train.data import TrainingData
    from loraqa.train.settings import RunSettings

# What the two processes leave each other in a folder.
_ASKED, _ENCODER = "asked.json", "encoder.json"
_ENCODED, _OUTCOME = "encoded.safetensors", "outcome.json"


class Preparation:
    """Training data that another process reads and encodes."""

    def __init__(self, process: subprocess.Popen[bytes], folder: TemporaryDirectory[str]) -> None:
        self._process = process
        self._folder = folder
        self._encoder: PromptEncoder | None = None

    def encode_with(self, encoder: "PromptEncoder") -> None:
        """Hand over what encodes; the other process reads and cuts until then, and waits for it.

        Raises:
            InputError, LoraqaError: as `check`.
        """
        self.check()
        self._encoder = encoder
        assert self._process.stdin is not None
        write_json(Path(self._folder.name) / _ENCODER, encoder.to_json())
        # If the other has ended since, that is told later.
        with suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), b"\n")

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

        if self._encoder is None:
            raise ValueError("encode_with comes first: the other process waits for it")
        facts = self._facts()
        encoded = load_encoded(Path(self._folder.name) / _ENCODED)
        data = TrainingData(facts, encoded, self._encoder.tokenizer)
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
def preparing(settings: "RunSettings") -> Iterator[Preparation]:
    """Begin to read and encode the training data of a run. On leaving, what still runs is stopped.

    Args:
        settings: of the run, with full paths.
    """
    folder = TemporaryDirectory(prefix="loraqa-")
    with folder as name:
        asked = {
            "source": settings.data.train,
            "on_bad": settings.data.on_bad,
            "template": settings.prompt.template,
        }
        write_json(Path(name) / _ASKED, asked)
        # Python's -P: nothing in the working directory is taken for a library. In a session of its
        # own, it gets no Ctrl-C.
        command = [sys.executable, "-P", "-m", "loraqa.ahead", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
            try:
                yield Preparation(process, folder)
            finally:
                process.kill()
                process.wait()


def _prepare(folder: Path, handed_over: Event) -> None:
    from loraqa.prompt.cache import write_encoded
    from loraqa.prompt.encode import PromptEncoder, training_texts
    from loraqa.prompt.template import Template
    from loraqa.train.data import describe_encoded, read_training_questions

    try:
        asked = read_json(folder / _ASKED)
        questions = read_training_questions(asked["source"], asked["on_bad"])
        template = Template(asked["template"])
        texts = training_texts(template, questions.passages)
        # Reckoned and cut while there is nothing else to do.
        _ = questions.fingerprint
        if not handed_over.is_set():
            _ = texts.words
        handed_over.wait()
        encoder = PromptEncoder.from_json(read_json(folder / _ENCODER))
        if encoder.template != template:
            texts = training_texts(encoder.template, questions.passages)
        counts = write_encoded(folder / _ENCODED, encoder, questions, texts)
        outcome: dict[str, Any] = {"facts": describe_encoded(questions, counts)}
    except (LoraqaError, OSError) as error:
        message, status = explain(error)
        outcome = {"error": message, "status": status}
    write_json(folder / _OUTCOME, outcome)


def _listen(folder: Path, handed_over: Event) -> None:
    """Wait for a byte from the other process, then until it is gone, however it ended."""
    if os.read(sys.stdin.fileno(), 1):
        handed_over.set()
        os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Read and encode what is asked for in a folder, and leave it there."""
    folder, handed_over = Path(sys.argv[1]), Event()
    Thread(target=_listen, args=[folder, handed_over], daemon=True).start()
    show_notices()
    _prepare(folder, handed_over)
    # The other waits; Python would first take apart all that was read.
    os._exit(0)


if __name__ == "__main__":
    main()
