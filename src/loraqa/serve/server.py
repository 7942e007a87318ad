"""Listen for requests, and stop on Ctrl-C."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import re
import signal
import socket
import stat
import time
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from loraqa.errors import InputError, quote
from loraqa.serve.connection import Connection

logger = logging.getLogger("loraqa")

# Seconds that running requests get to finish when the server stops.
_GRACE_SECONDS = 5
# Connections that the system accepts before we do. asyncio tries to take so many at once, and
# reports a lack of file descriptors for each.
_BACKLOG = 128
_LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SECONDS_BETWEEN_REPORTS = 60.0
_LONGEST_TOKEN = 1024
_TOKEN = re.compile(rb"([!-~]{1,%d})(?:\r?\n)?" % _LONGEST_TOKEN)


def read_token(path: Path) -> str:
    """Return the token in a file: one line of ASCII without blanks.

    Raises:
        InputError: the file cannot be read, or does not hold a token.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LONGEST_TOKEN + 3)
    except OSError as error:
        raise InputError(
            f"The token file {path} cannot be read ({error.strerror}); give another --token-file."
        ) from None
    found = _TOKEN.fullmatch(content)
    if not found:
        raise InputError(
            f"The token file {path} must hold one line of at most {_LONGEST_TOKEN} ASCII "
            "characters without blanks, such as `openssl rand -hex 32` prints."
        )
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("Other users can read the token file %s; run `chmod 600` on it.", path)
    return found[1].decode()


def listen(host: str, port: int, token: str | None = None) -> socket.socket:
    """Return a listening socket; port 0 means any free port.

    A name with several addresses means its first IPv4 address, or else its first address.

    Raises:
        InputError: the address does not exist, is in use, is not permitted, or can be reached from
            other machines and there is no token.
    """
    if not host.strip():
        raise InputError(
            "--host is empty, which would open every interface; give an address, as 127.0.0.1."
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, place = min(found, key=lambda each: each[0] != socket.AF_INET)
        if token is None:
            _check_loopback(host, str(place[0]))
        return socket.create_server(place, family=family)
    except UnicodeError:
        raise InputError(f"--host {quote(host)} is no name of a host; choose another.") from None
    except OSError as error:
        # `create_server` appends the address in brackets; our message already contains it.
        reason = str(error.strerror).partition(" (")[0]
        taken = error.errno == errno.EADDRINUSE
        remedy = "stop the program that uses it, or choose" if taken else "choose"
        raise InputError(
            f"Cannot listen on {quote(host)} port {port} ({reason}); {remedy} another --host or "
            "--port."
        ) from None


def _check_loopback(host: str, address: str) -> None:
    if not ipaddress.ip_address(address).is_loopback:
        raise InputError(
            f"Other machines can reach --host {quote(host)}; give a --token-file with a token "
            "that requests must bring, or listen on 127.0.0.1."
        )


def address(listener: socket.socket) -> str:
    """Return the URL of the socket for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: FastAPI) -> uvicorn.Server:
    """Return the server of an app."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Connection,
        ws="none",
        proxy_headers=False,
        backlog=_BACKLOG,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return _Server(config)


def run(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM; a second Ctrl-C stops without waiting."""
    server = make_server(app)
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listener])
    # A running answer's thread delays a normal exit, but not an exit by this signal.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if server.force_exit:
        signal.raise_signal(signal.SIGINT)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_BriefReports())
        await super().startup(sockets)


class _BriefReports:
    """Reports errors as asyncio does, but a lack of file descriptors once a minute."""

    def __init__(self) -> None:
        self._next = -float("inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _LACKS:
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS_BETWEEN_REPORTS
            logger.warning(
                "New connections wait (%s); raise the limit with `ulimit -n`.", error.strerror
            )
