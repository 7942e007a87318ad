"""Listening for requests, and ending on Ctrl-C."""

import contextlib
import errno
import signal
import socket

import uvicorn
from fastapi import FastAPI

from loraqa.errors import InputError

# How long requests may take to end once the server is asked to.
_GRACE_SECONDS = 5


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free.

    Raises:
        InputError: there is no such address, something else listens there, or this process may not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # `create_server` adds in brackets the address that we name ourselves.
        reason = str(error.strerror).partition(" (")[0]
        taken = error.errno == errno.EADDRINUSE
        remedy = "stop what listens there, or choose" if taken else "choose"
        raise InputError(
            f"Cannot listen on {host} port {port} ({reason}); {remedy} another --host or --port."
        ) from None


def address(listener: socket.socket) -> str:
    """The URL under which a browser finds the socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM; a second Ctrl-C does not wait for the last ones."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listener])
    # The thread of an answer in progress holds up the end of the process, but not of this signal's.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if server.force_exit:
        signal.raise_signal(signal.SIGINT)
