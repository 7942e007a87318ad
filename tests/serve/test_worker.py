"""Requests that wait, that take too long, and whose clients leave; over real sockets."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tests.serve.conftest import ENDLESS, PATIENCE, QUICK, Stub, app_of, ask, connect, post, serving

from loraqa.answer.answered import Answered
from loraqa.errors import LoraqaError
from loraqa.model.stop import ComputationStoppedError
from loraqa.reader import Reader


def test_an_answer_stops_when_its_client_leaves() -> None:
    stub = Stub()
    with serving(app_of(stub.answer)) as port:
        with connect(port) as client:
            client.sendall(post(ENDLESS))
            assert stub.begun.wait(PATIENCE)
            assert not stub.stopped.is_set()
        assert stub.stopped.wait(1)
        assert ask(port, QUICK)[0] == 200


def test_an_answer_stops_when_its_client_leaves_behind_a_second_request() -> None:
    stub = Stub()
    with serving(app_of(stub.answer)) as port:
        with connect(port) as client:
            client.sendall(post(ENDLESS).replace(b"close", b"keep-alive"))
            assert stub.begun.wait(PATIENCE)
            client.sendall(post(QUICK))
        assert stub.stopped.wait(1)


def test_a_client_that_leaves_the_queue_is_never_computed() -> None:
    stub, contexts = Stub(), []

    def answer(context: str, *rest: Any, **named: Any) -> list[Answered]:
        contexts.append(context)
        return stub.answer(context, *rest, **named)

    with serving(app_of(answer)) as port, connect(port) as first:
        first.sendall(post(ENDLESS))
        assert stub.begun.wait(PATIENCE)
        with connect(port) as second:
            second.sendall(post(QUICK | {"context": "gone"}))
        # It has been read when a later connection is answered.
        with connect(port) as third:
            third.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert third.recv(100)
        first.close()
        assert ask(port, QUICK)[0] == 200
    assert contexts == ["endless", "quick"]


def test_waiting_requests_are_bounded() -> None:
    stub = Stub()
    with serving(app_of(stub.answer, most_waiting=2)) as port, ExitStack() as clients:
        busy = clients.enter_context(connect(port))
        busy.sendall(post(ENDLESS))
        assert stub.begun.wait(PATIENCE)
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(ask, port, QUICK) for _ in range(5)]
            assert wait_for(lambda: sum(each.done() for each in asked) == 3, PATIENCE)
            waiting = [each for each in asked if not each.done()]
            refused = [each.result() for each in asked if each.done()]
            busy.close()
            answered = [each.result() for each in waiting]
    assert [status for status, _, _ in refused] == [429] * 3
    assert [status for status, _, _ in answered] == [200] * 2
    for _, headers, body in refused:
        assert int(headers["retry-after"]) > 0
        assert body == {"error": "Too many requests are waiting; ask again later."}


def wait_for(condition: Any, seconds: float) -> bool:
    """Return whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def test_the_deadline_stops_a_computation_and_counts_the_waiting() -> None:
    stub = Stub()
    with serving(app_of(stub.answer, seconds=0.3)) as port, ThreadPoolExecutor() as pool:
        first, second = (pool.submit(ask, port, ENDLESS) for _ in range(2))
        statuses = [first.result()[0], second.result()[0]]
        assert stub.stopped.wait(1)
        status, _, body = ask(port, ENDLESS)
        assert ask(port, QUICK)[0] == 200
    assert [*statuses, status] == [504] * 3
    assert "longer than 0.3 seconds" in body["error"]


def test_the_next_request_waits_until_a_stopped_one_has_ended() -> None:
    at_work, slow_to_stop = [], Event()

    def answer(context: str, *_: Any, stop: Event, **__: Any) -> list[Answered]:
        at_work.append(context)
        if context == "endless":
            assert stop.wait(PATIENCE)
            assert slow_to_stop.wait(PATIENCE)
        at_work.remove(context)
        return [Answered("0", str(len(at_work)), 0.0, 0.0, None, None, 0.0)]

    with serving(app_of(answer, seconds=0.2, most_waiting=0)) as port:
        assert ask(port, ENDLESS)[0] == 504
        assert ask(port, QUICK)[0] == 429
        # A document is refused before it is sent.
        with connect(port) as client:
            client.sendall(
                b"POST /api/document HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
                b"Content-Type: application/octet-stream\r\n\r\n"
            )
            assert client.recv(65536).startswith(b"HTTP/1.1 429")
        slow_to_stop.set()
        assert wait_for(lambda: ask(port, QUICK)[0] == 200, PATIENCE)


@pytest.fixture(scope="module")
def reader(tiny_folder: Path) -> Reader:
    loaded = Reader.load(tiny_folder, dtype="float32", device="cpu")
    return replace(loaded, max_answer_tokens=100, stride=16, tokens_per_batch=1024)


@pytest.mark.parametrize("strategy", ["greedy", "span", "beam:32", "temperature:100"])
def test_a_real_model_stops_halfway_and_answers_as_before(reader: Reader, strategy: str) -> None:
    begun, ended = Event(), Event()

    def answer(context: str, *rest: Any, stop: Event, **named: Any) -> list[Answered]:
        begun.set()
        try:
            return reader.answer(context, *rest, stop=stop, **named)
        except ComputationStoppedError:
            ended.set()
            raise

    long = {"context": "A king lived here. " * 3000, "questions": ["Who?"] * 50}
    short = {"context": "A king lived here.", "questions": ["Who?"], "strategy": strategy}
    before = reader.answer("A king lived here.", ["Who?"], strategy)
    with serving(app_of(answer)) as port:
        with connect(port) as client:
            client.sendall(post(long | {"strategy": strategy}))
            assert begun.wait(PATIENCE)
            time.sleep(0.3)
            assert not ended.is_set()
        # It would compute for minutes yet: the reader stops only before the end.
        assert ended.wait(PATIENCE)
        status, _, body = ask(port, short)
    assert status == 200
    assert body["answers"] == [asdict(each) for each in before]


def test_a_failure_after_waiting_is_reported() -> None:
    def answer(*_: Any, **__: Any) -> list[Answered]:
        raise LoraqaError("The disk is full.")

    with serving(app_of(answer)) as port:
        assert ask(port, QUICK)[::2] == (500, {"error": "The disk is full."})
        assert ask(port, QUICK)[0] == 500
