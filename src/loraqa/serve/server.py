"""Listen for requests, and stop on Ctrl-C."""

import contextlib
import errno
import signal
import socket

import uvicorn
from fastapi import FastAPI

from loraqa.errors import InputError

# Seconds that running requests get to finish when the server stops.
_GRACE_SECONDS = 5


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 means any free port.

    Raises:
        InputError: the address does not exist, is in use, or is not permitted.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # `create_server` appends the address in brackets; our message already contains it.
        reason = str(error.strerror).partition(" (")[0]
        taken = error.errno == errno.EADDRINUSE
        remedy = "stop the program that uses it, or choose" if taken else "choose"
        raise InputError(
            f"Cannot listen on {host} port {port} ({reason}); {remedy} another --host or --port."
        ) from None


def address(listener: socket.socket) -> str:
    """Return the URL of the socket for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM; a second Ctrl-C stops without waiting."""
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
    # A running answer's thread delays a normal exit, but not an exit by this signal.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if server.force_exit:
        signal.raise_signal(signal.SIGINT)
