"""Decide about every call of a process that changes a file, before it is made (`watch.c`).

The library is loaded with LD_PRELOAD, so a study starts Python again with it (`with_library`).
"""

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_SOURCE = Path(__file__).parent / "watch.c"
_VARIABLE = "LD_PRELOAD"

GO_ON = 0
DIE = -1


class Call(NamedTuple):
    """A call that is about to be made.

    Attributes:
        name: "open" (to write), "read" (an open to read), "write", "fsync", "chmod", "mkdir",
            "rmdir", "unlink", "rename" or "link".
        path: the file or folder.
        other: the new path of "rename" and "link"; else empty.
    """

    name: str
    path: str
    other: str

    @property
    def changes(self) -> bool:
        """Whether the call may change a file or a folder."""
        return self.name not in ("read", "fsync")


Answer = Callable[[Call], int]
"""Returns `GO_ON`, `DIE`, or the errno with which the call is to fail."""


def with_library(folder: Path, module: str) -> None:
    """Return if the library is loaded; else compile it into `folder`, and run `module` with it.

    Raises:
        SystemExit: the module has ended, or there is no C compiler.
    """
    if os.environ.get(_VARIABLE, "").endswith("watch.so"):
        return
    library = folder / "watch.so"
    command = [*os.environ.get("CC", "cc").split(), "-O2", "-shared", "-fPIC", "-o", str(library)]
    try:
        subprocess.run([*command, str(_SOURCE), "-ldl", "-lpthread"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"The crash study needs a C compiler on Linux ({error}).")
    # One thread: a process with OpenMP's threads cannot be forked.
    environment = {**os.environ, _VARIABLE: str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


def watch_this_process(root: Path, supervisor: socket.socket) -> None:
    """Ask the other end of a socket before every call on a path in `root`."""
    supervisor.set_inheritable(True)
    ctypes.CDLL(None).watch(os.fsencode(root), supervisor.fileno())


def answer_calls(calls: socket.socket, answer: Answer, seconds: float) -> None:
    """Answer the calls of a process until it ends, or so many seconds without a call are over."""
    # It may have died instead of reading an answer.
    with contextlib.suppress(ConnectionError):
        while select.select([calls], [], [], seconds)[0] and (message := calls.recv(65536)):
            name, path, other = map(os.fsdecode, message.split(b"\0"))
            calls.send(struct.pack("i", answer(Call(name, path, other))))
