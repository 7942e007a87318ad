"""The process of a command: signals, streams, and errors as one sentence."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, cast

import typer

from loraqa.cli.app import app
from loraqa.cli.cluster import with_addresses
from loraqa.distributed.launch import told_by_the_first
from loraqa.errors import InputError, LoraqaError, explain
from loraqa.notices import show_notices

# What wrong options and arguments raise. Typer exports only this part of it.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])

# The load, in processes that run or want to, from which on other work is taken to be busy.
_BUSY = 0.5


def main() -> NoReturn:
    """Run the command line. Every error is one sentence, and the exit status says its kind."""
    _open_closed_streams()
    _share_busy_cores()
    show_notices()
    # By default Python would end at once and leave temporary files.
    signal.signal(signal.SIGTERM, _terminate)
    # A process in the background ignores Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        words = with_addresses(sys.argv[1:])
        with told_by_the_first(_UsageError):
            # Without arguments Typer shows the help.
            status = app(args=words, prog_name="loraqa", standalone_mode=not words)
    except _UsageError as error:
        _fail(_explain_usage(error), InputError.exit_code)
    except (LoraqaError, OSError) as error:
        _fail(*explain(error))
    except KeyboardInterrupt:
        raise SystemExit(_status_of(signal.SIGINT)) from None
    raise SystemExit(status or 0)


def _explain_usage(error: typer.BadParameter) -> str:
    command = error.ctx.command_path if error.ctx else "loraqa"
    wrong = _as_setting(error) or error.format_message().rstrip(".")
    return f"{wrong}; `{command} --help` tells what can be given."


def _as_setting(error: typer.BadParameter) -> str | None:
    """Say how a setting is given that was taken for an option of `loraqa train` or `sweep`."""
    command = error.ctx.info_name if error.ctx else None
    if command not in ("train", "sweep") or "No such option" not in error.format_message():
        return None
    from loraqa.train.settings import option_of

    unknown = str(getattr(error, "option_name", ""))
    name = unknown.lstrip("-").replace("-", "_").rpartition(".")[2]
    option = "--model" if name == "base" else option_of(name)
    return option and f"No such option: {unknown}; give {option} instead"


def _open_closed_streams() -> None:
    """Discard what is written to a stream that is closed, as after `>&-`: Python makes it None."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def _share_busy_cores() -> None:
    """Let threads sleep, not spin, while they wait for one another, if other processes are busy.

    A spinning thread keeps a core that the awaited thread of its own process needs. OpenMP reads
    this once, when PyTorch is imported.
    """
    with suppress(AttributeError, OSError):
        if os.getloadavg()[0] > _BUSY:
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _terminate(number: int, *_: object) -> NoReturn:
    _say_stopped(number)
    raise SystemExit(_status_of(number))


def _interrupt(number: int, *_: object) -> NoReturn:
    """Raise `KeyboardInterrupt` once; a further Ctrl-C would interrupt the cleaning up."""
    signal.signal(number, signal.SIG_IGN)
    _say_stopped(number)
    raise KeyboardInterrupt


def _status_of(number: int) -> int:
    """Return the exit status that shells use for a process stopped by a signal."""
    return 128 + number


def _say_stopped(number: int) -> None:
    # Not by `sys.stderr`, which the signal may have interrupted while it was writing.
    with suppress(OSError):
        os.write(
            sys.stderr.fileno(), f"loraqa: Stopped by {signal.Signals(number).name}.\n".encode()
        )


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"loraqa: {message}\n")
    raise SystemExit(status)
