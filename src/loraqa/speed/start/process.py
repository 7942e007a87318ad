"""Let a preparing process read and encode the data while the training process imports PyTorch.

    with preparing(settings) as prepare:
        from loraqa.finetuning import finetune

        finetune(settings, run, prepare=prepare)

The preparing process needs neither PyTorch nor transformers: it builds the tokenizer from the
model's `tokenizer.json`. That is only a guess, because transformers may build the tokenizer
differently. So the training process compares the guess with the tokenizer that transformers loads;
if they differ, it prepares the data itself.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from loraqa.errors import InputError, LoraqaError, explain
from loraqa.files import read_json, temporary_folder, write_json
from loraqa.notices import show_notices
from loraqa.speed import OF_COMMANDS, chosen
from loraqa.speed.start import accelerated_preparation
from loraqa.squad import QADataset, Seen
from loraqa.train.data import TrainingData, check_sources
from loraqa.train.settings import RunSettings, load_settings

if TYPE_CHECKING:
    from loraqa.prompt.encode import Encoded
    from loraqa.prompt.segments import SegmentTokenizer

logger = logging.getLogger("loraqa")

# Held while a file is written, so that a folder that is removed stays removed.
_WRITING = Lock()
# The files in the folder that both processes share.
_SETTINGS, _ENCODED, _OUTCOME = "settings.yaml", "encoded.safetensors", "outcome.json"


@contextmanager
def preparing(settings: RunSettings) -> Iterator[Callable[[RunSettings], TrainingData]]:
    """Start preparing the training data of a run; yield the function that returns them.

    On leaving, the preparing process is stopped if it still runs.

    Args:
        settings: the settings of the run, with full paths.

    Raises:
        InputError: the model or the data do not exist, or `speed.without` names no acceleration.
    """
    check_sources(settings)
    if not chosen(OF_COMMANDS, settings.speed.without):
        yield accelerated_preparation(settings.speed.without)
        return
    with temporary_folder() as folder:
        (folder / _SETTINGS).write_text(settings.to_yaml(), encoding="utf-8")
        # Python's -P: a file in the working directory is not taken for a library. In a session of
        # its own the process gets no Ctrl-C.
        command = [sys.executable, "-P", "-m", "loraqa.speed.start.process", str(folder)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            data = _DataFromProcess(settings, process, folder)
            try:
                yield lambda _: data.begin()
            finally:
                data.end()


class _DataFromProcess:
    """`TrainingData` of the preparing process; the first use waits for them.

    Raises:
        InputError: the data are wrong; on the first use.
        LoraqaError: the preparing process ended unexpectedly; on the first use.
    """

    def __init__(
        self, settings: RunSettings, process: subprocess.Popen[bytes], folder: Path
    ) -> None:
        self._settings, self._process, self._folder = settings, process, folder
        self._threads: int | None = None

    def begin(self) -> TrainingData:
        """Let PyTorch use one thread less until the data are there.

        With a thread on every core, each of its parallel operations would wait for the thread whose
        core the preparing process has taken.

        Raises:
            InputError, LoraqaError: as above, if the preparing process has ended by now.
        """
        import torch

        if "_data" in vars(self):
            return self
        if (self._folder / _OUTCOME).exists() or self._process.poll() is not None:
            _read_outcome(self._process, self._folder)
        if self._threads is None:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(max(self._threads - 1, 1))
        return self

    def end(self) -> None:
        """Stop the process, remove its folder, and let PyTorch use as many threads as before."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
            self._threads = None

    @property
    def facts(self) -> dict[str, Any]:
        """See `TrainingData`."""
        return self._data.facts

    @property
    def encoded(self) -> "Encoded":
        """See `TrainingData`."""
        return self._data.encoded

    @property
    def held_out(self) -> QADataset:
        """See `TrainingData`."""
        return self._data.held_out

    @property
    def tokenizer(self) -> "SegmentTokenizer":
        """See `TrainingData`."""
        return self._data.tokenizer

    @property
    def seen(self) -> Seen:
        """See `TrainingData`."""
        return self._data.seen

    @property
    def base_sha256(self) -> str | None:
        """See `TrainingData`."""
        return self._data.base_sha256

    @cached_property
    def _data(self) -> TrainingData:
        from loraqa.prompt.encoded_file import load_encoded
        from loraqa.train.data import EncodedTrainingData

        preparation = accelerated_preparation(self._settings.speed.without)
        try:
            encoder = preparation.encoder(self._settings)
            outcome = _read_outcome(self._process, self._folder)
            if outcome["encoder"] == encoder.fingerprint:
                return EncodedTrainingData(
                    outcome["facts"],
                    load_encoded(self._folder / _ENCODED),
                    QADataset.from_json(outcome["held_out"]),
                    encoder.tokenizer,
                    Seen.from_json(outcome["seen"]),
                    outcome["base_sha256"],
                )
        finally:
            self.end()
        if outcome["encoder"] is None:
            logger.info(
                "The training data are encoded only now, because tokenizer.json and config.json "
                "were not enough to encode them without transformers."
            )
        else:
            logger.info(
                "The training data are encoded again, because transformers does not load the "
                "tokenizer as tokenizer.json describes it."
            )
        return preparation(self._settings)


def _read_outcome(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """Wait for the process and return what it found. Raises the error that it met."""
    path = folder / _OUTCOME
    if process.stdout is not None:
        # The process closes it when the outcome is there.
        process.stdout.read()
    if not path.exists():
        status = process.wait()
        raise LoraqaError(
            f"The process that prepared the training data ended with status {status}; see that "
            "there is enough memory, and start again."
        )
    outcome: dict[str, Any] = read_json(path)
    if "error" in outcome:
        wrong_input = outcome["status"] == InputError.exit_code
        raise (InputError if wrong_input else LoraqaError)(outcome["error"])
    return outcome


def main() -> None:
    """Prepare the training data of the settings in a folder, and leave them there."""
    # A scheduler may signal all processes of a job. This one ends with its parent.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    watch = Thread(target=_end_with_parent, args=[folder], daemon=True)
    watch.start()
    show_notices()
    try:
        outcome = _prepare(folder)
    except (LoraqaError, OSError) as error:
        message, status = explain(error)
        outcome = {"error": message, "status": status}
    try:
        with _WRITING:
            write_json(folder / _OUTCOME, outcome)
    except OSError as error:
        logger.error(explain(error)[0])
        raise SystemExit(1) from None
    os.close(sys.stdout.fileno())
    # The training process reads the outcome, and then ends this process.
    watch.join()


def _prepare(folder: Path) -> dict[str, Any]:
    from loraqa.prompt.encoded_file import save_encoded
    from loraqa.speed.start.tokenizer import guess_encoder
    from loraqa.train.data import base_hash, read_questions

    settings = load_settings([folder / _SETTINGS])
    questions = read_questions(settings)
    preparation = accelerated_preparation(settings.speed.without)
    encoder = guess_encoder(preparation, settings)
    if encoder is None:
        return {"encoder": None}
    try:
        encoded = preparation.encode(encoder, questions.learned)
    except InputError:
        # The guess may be wrong. The training process will find out.
        return {"encoder": None}
    with _WRITING:
        save_encoded(encoded, folder / _ENCODED)
    return {
        "encoder": encoder.fingerprint,
        "facts": questions.describe(encoded.counts),
        "held_out": questions.held_out.to_json(),
        "seen": Seen.in_data(questions.all).to_json(),
        "base_sha256": base_hash(settings),
    }


def _end_with_parent(folder: Path) -> None:
    """Clean up and end when the training process has ended: its end of the pipe closes then."""
    os.read(sys.stdin.fileno(), 1)
    with _WRITING:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


if __name__ == "__main__":
    main()
