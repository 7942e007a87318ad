"""Run loraqa's command line in forks of a process that has imported PyTorch already.

Importing PyTorch and transformers takes seconds, a tiny training less than one.
"""

import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reliability.watching import Answer, answer_calls, watch_this_process

# A command that takes so long hangs.
LIMIT = 120.0
# Other than each status of loraqa.
_RAISED = 70


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; the negative number of the signal that killed it.
        said: what it wrote to standard output and standard error.
        seconds: how long it ran.
    """

    status: int
    said: str
    seconds: float

    @property
    def refusal(self) -> str | None:
        """The sentence with which loraqa refused to work; None if it did not, or not properly."""
        last = self.said.strip().rpartition("\n")[2]
        proper = self.status in (1, 2) and "Traceback" not in self.said and len(last) < 1500
        start = self.said.rfind("loraqa: ")
        return " ".join(self.said[start:].split()) if proper and start >= 0 else None


def loraqa(arguments: Sequence[str]) -> None:
    """Run loraqa's command line in this process, which then ends."""
    from loraqa.cli import main

    sys.argv = ["loraqa", *arguments]
    main()


def run(
    work: Callable[[], None],
    place: Path,
    *,
    kill_after: float | None = None,
    answer: Answer | None = None,
) -> Ended:
    """Run a function in a forked process in the folder `place`, and wait until it ends.

    Cache and temporary folders are `place/cache` and `place/tmp`.

    Args:
        work: the function.
        place: the working directory.
        kill_after: seconds after which the process is killed.
        answer: decides about every call on a file in `place`.
    """
    (place / "tmp").mkdir(exist_ok=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = os.fork()
        if process == 0:
            _be_the_process(work, place, output.fileno(), theirs if answer else None)
        theirs.close()
        watch = os.pidfd_open(process)
        try:
            if answer is not None:
                answer_calls(ours, answer, LIMIT)
            _wait(watch, LIMIT if kill_after is None else kill_after)
        finally:
            os.kill(process, signal.SIGKILL)
            os.close(watch)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        seconds = time.perf_counter() - start
        output.seek(0)
        return Ended(status, output.read().decode(errors="replace"), seconds)


def _wait(watch: int, seconds: float) -> None:
    select.select([watch], [], [], seconds)


def _be_the_process(
    work: Callable[[], None], place: Path, output: int, calls: socket.socket | None
) -> None:
    """Be the forked process; never return."""
    status = _RAISED
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(place)
        os.environ["LORAQA_CACHE"] = str(place / "cache")
        os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
        if calls is not None:
            watch_this_process(place, calls)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else _RAISED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
