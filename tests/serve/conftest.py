"""Servers over real sockets, with a reader that answers at once or not before it is stopped."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI

from loraqa.answer.answered import Answered
from loraqa.errors import LoraqaError
from loraqa.serve.app import Served, create_app
from loraqa.serve.server import listen, make_server

ENDLESS = {"context": "endless", "questions": ["?"]}
QUICK = {"context": "quick", "questions": ["?"]}
# No test takes so long unless it fails.
PATIENCE = 20.0


class Stub:
    """A reader that repeats the context, or reads on until it is stopped."""

    def __init__(self) -> None:
        self.begun, self.stopped = Event(), Event()

    def answer(self, context: str, *_: Any, stop: Event, **__: Any) -> list[Answered]:
        if context == ENDLESS["context"]:
            self.begun.set()
            if not stop.wait(PATIENCE):
                raise LoraqaError("Nobody stopped the answer.")
            self.stopped.set()
        return [Answered("0", context, 0.0, 0.0, None, None, 0.0)]


def app_of(answer: Any, **limits: Any) -> FastAPI:
    """Return an app whose reader answers with this function, and knows no other answers."""

    def candidates(
        context: str, questions: list[str], _: int, *rest: Any, **named: Any
    ) -> list[list[Answered]]:
        return [[best] for best in answer(context, questions, *rest, **named)]

    reader: Any = SimpleNamespace(candidates=candidates)
    served = Served(base="b", adapter=None, template="t", max_length=1, max_answer_tokens=1)
    return create_app(reader, served, **limits)


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """Serve the app in another thread; yield the port."""
    server = make_server(app)
    with listen("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
    assert not thread.is_alive()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def post(body: Any) -> bytes:
    """Return the bytes of a request for answers."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        "POST /api/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text


def everything(client: socket.socket) -> bytes:
    """Read until the server closes or resets the connection."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def ask(port: int, body: Any) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and JSON of the reply to a request on a connection of its own."""
    with connect(port) as client:
        client.sendall(post(body))
        head, _, text = everything(client).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, json.loads(text)
