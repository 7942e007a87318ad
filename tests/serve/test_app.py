"""The HTTP API: answers are those of the reader, and every error is one sentence in JSON."""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from tests.serve.conftest import app_of

from loraqa.answer.answered import Answered
from loraqa.answer.strategies import parse_strategy
from loraqa.errors import LoraqaError
from loraqa.reader import Reader
from loraqa.serve.app import MAX_QUESTIONS, Served, create_app
from loraqa.serve.guard import MAX_BODY_BYTES

CONTEXT = "Die alte Mühle 🏭 am Fluss was built by Ruth Olen in 1203."
QUESTIONS = ["Who built the mill?", "When?"]
HERE = "http://localhost"


@pytest.fixture(scope="module")
def reader(tiny_folder: Path) -> Reader:
    loaded = Reader.load(tiny_folder, dtype="float32", device="cpu")
    return replace(loaded, max_answer_tokens=6, stride=16)


@pytest.fixture(scope="module")
def client(reader: Reader, tiny_folder: Path) -> Iterator[TestClient]:
    app = create_app(reader, Served.describe(tiny_folder, reader))
    with TestClient(app, base_url=HERE) as client:
        yield client


@pytest.mark.parametrize("strategy", ["greedy", "span", "beam:2", "temperature:5"])
def test_answers_are_those_of_the_reader(client: TestClient, reader: Reader, strategy: str) -> None:
    body = {"context": CONTEXT, "questions": QUESTIONS, "strategy": strategy, "seed": 3}
    reply = client.post("/api/answer", json=body)
    own = [asdict(answer) for answer in reader.answer(CONTEXT, QUESTIONS, strategy, seed=3)]
    assert reply.status_code == 200
    assert reply.json() == {"answers": own, "candidates": []}


def test_offsets_count_code_points(client: TestClient) -> None:
    body = {"context": CONTEXT, "questions": QUESTIONS, "strategy": "span"}
    for answer in client.post("/api/answer", json=body).json()["answers"]:
        assert CONTEXT[answer["start"] : answer["end"]] == answer["text"] != ""


def test_strategy_and_seed_may_be_left_out(client: TestClient, reader: Reader) -> None:
    reply = client.post("/api/answer", json={"context": CONTEXT, "questions": ["When?"]})
    (own,) = reader.answer(CONTEXT, ["When?"], "span", seed=0)
    assert reply.json()["answers"] == [asdict(own)]


def test_the_model_is_described(client: TestClient, reader: Reader, tiny_folder: Path) -> None:
    described = client.get("/api/model").json()
    assert described["base"] == str(tiny_folder)
    assert described["adapter"] is None
    assert described["template"] == reader.template.text
    assert described["max_length"] == 256
    assert described["max_answer_tokens"] == 6
    assert described["max_questions"] == MAX_QUESTIONS
    for strategy in described["strategies"]:
        parse_strategy(strategy)


def test_the_description_names_the_adapter_of_a_run(reader: Reader, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").touch()
    assert Served.describe(tmp_path, reader).adapter == str(adapter)


def test_health_and_schema(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/health", "/api/model", "/api/answer", "/api/document"}
    assert "422" in schema["paths"]["/api/answer"]["post"]["responses"]


GOOD = {"context": CONTEXT, "questions": ["When?"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"context": " "}, "The context is blank"),
        ({"questions": ["When?", ""]}, "The question is blank"),
        ({"questions": []}, "questions: "),
        ({"questions": "When?"}, "questions: "),
        ({"questions": ["When?"] * (MAX_QUESTIONS + 1)}, f"at most {MAX_QUESTIONS}"),
        ({"questions": ["When?", 7]}, "questions.1: "),
        ({"questions": ["when " * 500]}, "shorten the question"),
        ({"strategy": "best"}, "There is no strategy 'best'"),
        ({"strategy": "top-p:7"}, "out of range"),
        ({"seed": -1}, "seed: "),
        ({"seed": "1"}, "seed: "),
        ({"answers": 0}, "answers: "),
        ({"sede": 1}, "sede: "),
        ({"s" * 100_000: 1}, f"{'s' * 30} … {'s' * 30}: Extra inputs are not permitted"),
        ({"context": None}, "context: "),
    ],
)
def test_wrong_input_is_one_sentence(client: TestClient, change: dict[str, Any], says: str) -> None:
    reply = client.post("/api/answer", json=GOOD | change)
    assert reply.status_code == 422
    assert list(reply.json()) == ["error"]
    assert says in reply.json()["error"]
    assert reply.json()["error"].endswith(".")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"context": "\\ud800", "questions": ["When?"]}', "application/json"),
        # Another site's page can send this content type without a CORS preflight.
        (json.dumps(GOOD).encode(), "text/plain"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(
    client: TestClient, body: bytes, content_type: str
) -> None:
    reply = client.post("/api/answer", content=body, headers={"Content-Type": content_type})
    assert 400 <= reply.status_code < 500
    assert list(reply.json()) == ["error"]
    assert reply.json()["error"].endswith(".")


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_large_body_is_refused_with_or_without_its_length(
    client: TestClient, in_pieces: bool
) -> None:
    def body_of(size: int) -> Any:
        text = json.dumps(GOOD | {"strategy": "best"}).encode().ljust(size)
        return (text[at : at + 65536] for at in range(0, size, 65536)) if in_pieces else text

    headers = {"Content-Type": "application/json"}
    fits = client.post("/api/answer", content=body_of(MAX_BODY_BYTES), headers=headers)
    large = client.post("/api/answer", content=body_of(MAX_BODY_BYTES + 1), headers=headers)
    assert "no strategy" in fits.json()["error"]
    assert large.status_code == 413
    assert "send less at once" in large.json()["error"]


def test_other_addresses_and_methods_are_refused_in_json(client: TestClient) -> None:
    assert client.get("/nowhere").status_code == 404
    assert client.get("/nowhere").json() == {"error": "Not Found."}
    wrong_method = client.get("/api/answer")
    assert wrong_method.status_code == 405
    assert wrong_method.headers["allow"] == "POST"
    assert list(wrong_method.json()) == ["error"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LoraqaError("The disk is full."), "The disk is full."),
        (RuntimeError("secret"), "The server failed to answer this request; see its log."),
    ],
)
def test_failures_show_no_traceback(error: Exception, says: str) -> None:
    def fail(*_: Any, **__: Any) -> list[Answered]:
        raise error

    client = TestClient(app_of(fail), HERE, raise_server_exceptions=False)
    reply = client.post("/api/answer", json=GOOD)
    assert reply.status_code == 500
    assert reply.json() == {"error": says}


def test_concurrent_requests_are_answered_one_after_another() -> None:
    at_work = Lock()

    def answer(context: str, *_: Any, **__: Any) -> list[Answered]:
        assert at_work.acquire(blocking=False), "two requests met in the model"
        try:
            return [Answered("0", context, 0.0, 0.0, None, None, 0.0)]
        finally:
            at_work.release()

    contexts = [f"text {number}" for number in range(16)]
    with TestClient(app_of(answer), HERE) as client, ThreadPoolExecutor(8) as pool:
        bodies = [{"context": context, "questions": ["?"]} for context in contexts]
        replies = list(pool.map(lambda body: client.post("/api/answer", json=body).json(), bodies))
    assert [reply["answers"][0]["text"] for reply in replies] == contexts


def test_a_request_interrupted_by_shutdown_gets_status_503() -> None:
    at_work, finish = Event(), Event()

    def answer(*_: Any, **__: Any) -> list[Answered]:
        at_work.set()
        finish.wait()
        return []

    async def cut_short() -> httpx2.Response:
        transport = httpx2.ASGITransport(app_of(answer))
        async with httpx2.AsyncClient(transport=transport, base_url=HERE) as client:
            asking = asyncio.create_task(client.post("/api/answer", json=GOOD))
            await asyncio.to_thread(at_work.wait)
            asking.cancel()
            return await asking

    try:
        reply = asyncio.run(cut_short())
    finally:
        finish.set()
    assert reply.status_code == 503
    assert reply.json() == {"error": "The server is stopping; ask again later."}


def test_no_cors_header_allows_other_sites(client: TestClient) -> None:
    reply = client.post("/api/answer", json=GOOD, headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize("strategy", ["span", "beam:3", "top-k:5"])
def test_several_answers_are_those_of_the_reader(
    client: TestClient, reader: Reader, strategy: str
) -> None:
    body = {"context": CONTEXT, "questions": QUESTIONS, "strategy": strategy, "answers": 3}
    reply = client.post("/api/answer", json=body | {"seed": 3}).json()
    own = reader.candidates(CONTEXT, QUESTIONS, 3, strategy, seed=3)
    assert reply["candidates"] == [[asdict(answer) for answer in answers] for answers in own]
    assert reply["answers"] == [answers[0] for answers in reply["candidates"]]
    assert strategy != "span" or len(own[0]) == 3


@pytest.fixture
def page(client: TestClient) -> str:
    reply = client.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    return reply.text


def test_the_page_loads_nothing(page: str) -> None:
    assert not re.search(r"https?:|//\w|@import|url\(", page)
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]
    assert "default-src 'none'" in page


def test_the_page_inserts_text_and_never_markup(page: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)


def test_the_page_offers_strategies_that_exist(page: str) -> None:
    offered = re.findall(r'<option value="([^"]+)"', page)
    assert "greedy" in offered
    for strategy in offered:
        parse_strategy(strategy)
