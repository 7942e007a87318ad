"""Clients that send slowly, send nothing, read nothing, or open too many connections."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.serve.conftest import (
    ENDLESS,
    QUICK,
    Stub,
    app_of,
    ask,
    connect,
    everything,
    post,
    serving,
)

from loraqa.serve.connection import CLIENT_SECONDS, Connection
from loraqa.serve.guard import MAX_BODY_BYTES

# How long a client may be slow here, and how long it takes at most to cut it.
SLOW, CUT = 0.5, 3.0


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(Connection, "client_seconds", SLOW)
    with serving(app_of(Stub().answer, token="s3cret")) as port:
        yield port


def test_clients_are_cut_within_fifteen_seconds() -> None:
    assert CLIENT_SECONDS < 15


HEAD = b"POST /api/answer HTTP/1.1\r\nHost: localhost\r\n"
TOO_LARGE = b" " * (MAX_BODY_BYTES + 1)
AUTHORIZED = HEAD + b"Authorization: Bearer s3cret\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"", b""),
        (b"", b"G"),
        (HEAD, b"X: y\r\n"),
        (AUTHORIZED + b"Content-Length: 1000\r\n\r\n", b" "),
        (AUTHORIZED + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        # Refused before its body has come.
        (HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
        (AUTHORIZED + b"Content-Length: %d\r\n\r\n" % (2 * len(TOO_LARGE)) + TOO_LARGE, b" "),
        # A second request on the connection.
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"X"),
    ],
)
def test_a_slow_request_is_cut(port: int, start: bytes, drop: bytes) -> None:
    with connect(port) as client:
        began = time.monotonic()
        client.sendall(start)
        assert is_cut(client, drop)
        assert time.monotonic() - began < CUT


def test_a_long_document_may_take_longer(port: int) -> None:
    piece = b"Town ".ljust(2**20)
    head = AUTHORIZED.replace(b"/api/answer", b"/api/document?name=a.txt").replace(
        b"application/json", b"application/octet-stream"
    )
    with connect(port) as client:
        client.sendall(head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % (4 * len(piece)))
        began = time.monotonic()
        for _ in range(4):
            time.sleep(0.6 * SLOW)
            client.sendall(piece)
        assert time.monotonic() - began > 2 * SLOW
        assert everything(client).startswith(b"HTTP/1.1 200")


def test_a_body_without_an_end_is_not_read_for_ever(port: int) -> None:
    piece = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    with connect(port) as client:
        client.sendall(AUTHORIZED + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(client, piece)


def is_cut(client: socket.socket, drop: bytes) -> bool:
    """Send a drop every moment, as a slow client does; return whether the server cuts it."""
    client.settimeout(0.05)
    for _ in range(int(2 * CUT / 0.05)):
        try:
            client.sendall(drop)
            if client.recv(65536) == b"":
                return True
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return True
    return False


def send_for_ever(client: socket.socket, piece: bytes) -> None:
    while True:
        client.sendall(piece)


def test_a_client_that_reads_nothing_is_cut(port: int) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.settimeout(CUT)
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret\r\n\r\n"
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(client, request)


def test_a_request_that_is_computed_is_not_cut(port: int) -> None:
    with connect(port) as client:
        body = json.dumps(ENDLESS).encode()
        client.sendall(AUTHORIZED + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        client.settimeout(3 * SLOW)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_connection_serves_one_request_after_another(port: int) -> None:
    with connect(port) as client:
        for _ in range(4):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while b"ok" not in received:
                received += client.recv(65536) or pytest.fail("The connection was closed.")
            time.sleep(0.6 * SLOW)


def test_requests_sent_at_once_are_answered_in_order() -> None:
    with serving(app_of(Stub().answer)) as port, connect(port) as client:
        keeping = [
            post(QUICK | {"context": text}).replace(b"close", b"keep-alive") for text in "ab"
        ]
        client.sendall(b"".join(keeping) + post(QUICK | {"context": "c"}))
        received = everything(client)
    places = [received.index(b'"text":"%s"' % text) for text in (b"a", b"b", b"c")]
    assert places == sorted(places)


def test_a_client_cannot_fill_memory_with_requests_ahead() -> None:
    stub = Stub()
    with serving(app_of(stub.answer)) as port, connect(port) as client:
        client.sendall(post(ENDLESS).replace(b"close", b"keep-alive"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(client, b"G" * 65536)
        assert stub.stopped.wait(1)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "max_connections", 5)
    with serving(app_of(Stub().answer)) as port:
        with ExitStack() as clients:
            held = [clients.enter_context(connect(port)) for _ in range(5)]
            with connect(port) as one_more:
                assert everything(one_more) == b""
            held[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert held[0].recv(100).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.1)
        assert ask(port, QUICK)[0] == 200


# A server with few file descriptors, whose log is what it writes to standard error.
SERVER = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
from loraqa.notices import show_notices
from loraqa.serve.server import listen, run
from tests.serve.conftest import Stub, app_of
show_notices()
with listen("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    run(app_of(Stub().answer), listener)
"""


@contextmanager
def logging_server(log: Path) -> Iterator[int]:
    """Run the server above, yield its port, and write its log to a file."""
    command = [sys.executable, "-c", SERVER]
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as server,
    ):
        assert server.stdout
        yield int(server.stdout.readline())
        server.terminate()


def test_clients_that_do_wrong_leave_no_line_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    upgrade = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    with logging_server(log) as port:
        for wrong in (
            b"\x00\xff nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"X" * 100_000,
            HEAD + b"Content-Length: 1000\r\n\r\n{",
            post(b"{"),
            upgrade + b"Upgrade: websocket\r\n\r\n",
        ):
            with connect(port) as client:
                client.sendall(wrong)
                client.shutdown(socket.SHUT_WR)
                everything(client)
        assert ask(port, QUICK)[0] == 200
    assert log.read_text() == ""


def test_a_lack_of_file_descriptors_is_reported_once_and_passes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_server(log) as port:
        with ExitStack() as clients:
            for _ in range(100):
                clients.enter_context(connect(port))
            # asyncio tries again every second.
            time.sleep(2.5)
        assert ask(port, QUICK)[0] == 200
    (line,) = log.read_text().splitlines()
    assert "New connections wait" in line
    assert "ulimit -n" in line
