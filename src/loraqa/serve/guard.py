"""Checks before the API sees a request: its Host, its token, and the size of its body."""

import base64
import ipaddress
import re
from collections.abc import Collection
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loraqa.serve.problem import problem

# A book of two thousand pages.
MAX_BODY_BYTES = 4 * 2**20
# A PDF has pictures, too.
MAX_DOCUMENT_BYTES = 64 * 2**20
DOCUMENT_PATH = "/api/document"

_PORT = re.compile(r":\d*$")

# A browser asks its user for the token: any user name, and the token as the password.
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="loraqa", charset="UTF-8"'}


class Guard:
    """Refuses requests whose Host header names another site, and requests without the token.

    A page of another site can let its own name point to this machine (DNS rebinding), and its
    scripts could then read answers. An IP address in the header is no such name. `/health` needs no
    token.

    Args:
        app: what is guarded.
        hosts: names of this server besides `localhost`.
        token: a request brings it as bearer token, or as the password that a browser asks for;
            None if requests need none.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str | None) -> None:
        self._app = app
        self._hosts = {"localhost", *map(_name, hosts)}
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            app = self._refusal(scope["path"], Headers(scope=scope)) or app
        await app(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> ASGIApp | None:
        if not self._is_own(headers.get("host", "")):
            return problem(421, "The Host header names another server; allow it by --allow-host.")
        if self._token is None or path == "/health":
            return None
        if compare_digest(_given_token(headers), self._token.encode()):
            return None
        return problem(
            401, "This server needs its token; send it as Authorization: Bearer TOKEN.", _CHALLENGE
        )

    def _is_own(self, host: str) -> bool:
        return _name(host) in self._hosts or _is_ip_address(_name(host))


def _name(host: str) -> str:
    """Return a host without its port."""
    return _PORT.sub("", host.lower())


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _given_token(headers: Headers) -> bytes:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip().encode()
        case "basic":
            return _password(value)
    return b""


def _password(credentials: str) -> bytes:
    try:
        return base64.b64decode(credentials).partition(b":")[2]
    except ValueError:
        return b""


class LimitBody:
    """Refuses bodies that are too large, whatever the headers say, without storing them.

    `MAX_DOCUMENT_BYTES` bounds documents, and `MAX_BODY_BYTES` all else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = MAX_DOCUMENT_BYTES if scope.get("path") == DOCUMENT_PATH else MAX_BODY_BYTES
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received <= most:
                return message
            # Read the rest, because a client does not read the reply while it is sending. The
            # connection is cut if that takes too long, and after as much again.
            while message.get("more_body") and received <= 2 * most:
                message = await receive()
                received += len(message.get("body", b""))
            raise HTTPException(
                413,
                f"The request is larger than {most >> 20} MiB; send less at once.",
            )

        await self._app(scope, limited, send)
