"""Host, token and errors: who may ask, and what a wrong request is told."""

import base64
import json
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from tests.serve.conftest import QUICK, Stub, app_of, connect, everything, serving

from loraqa.serve.guard import MAX_BODY_BYTES
from loraqa.serve.problem import MOST_CHARACTERS

ROUTES = ["/", "/health", "/api/model", "/api/answer", "/openapi.json", "/nowhere", "/health/x"]


def client_of(url: str = "http://localhost", **limits: Any) -> TestClient:
    return TestClient(app_of(Stub().answer, **limits), url, raise_server_exceptions=False)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1:8000",
        "[::1]:8000",
        "[::1]",
        "192.168.1.9",
        "qa.example:443",
        "box",
    ],
)
def test_own_names_and_addresses_are_served(host: str) -> None:
    client = client_of(hosts=["qa.example", "Box:8000"])
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1:80.evil.example",
        "evil.example:localhost",
        "user@localhost",
        "sub.qa.example",
        "",
        ":8000",
        "2130706433",
        "x" * 10_000,
    ],
)
@pytest.mark.parametrize("path", ROUTES)
def test_other_names_are_refused_on_every_route(host: str, path: str) -> None:
    reply = client_of(hosts=["qa.example"]).get(path, headers={"Host": host})
    assert reply.status_code == 421
    assert reply.json() == {
        "error": "The Host header names another server; allow it by --allow-host."
    }


def test_requests_without_a_host_are_refused() -> None:
    with serving(app_of(Stub().answer)) as port, connect(port) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert everything(client).startswith(b"HTTP/1.1 421 ")


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "header",
    ["Bearer s3cret:!", "bearer  s3cret:! ", basic("", "s3cret:!"), basic("anyone", "s3cret:!")],
)
def test_the_token_opens_every_route(header: str) -> None:
    client = client_of(token="s3cret:!")
    client.headers["Authorization"] = header
    assert client.get("/").status_code == 200
    assert client.get("/api/model").status_code == 200
    assert client.get("/openapi.json").status_code == 200
    assert client.post("/api/answer", json=QUICK).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer s3cret",
        "Bearer s3cret!x",
        "Bearer s3cret! s3cret!",
        "s3cret!",
        "Token s3cret!",
        "Basic",
        "Basic s3cret!",
        "Basic !",
        "Basic ÿ",
        basic("s3cret!", ""),
        basic("", "other"),
        "Bearer ÿ",
        "Bearer " + "x" * 10_000,
    ],
)
@pytest.mark.parametrize("path", [path for path in ROUTES if path != "/health"])
def test_without_the_token_every_route_but_health_is_closed(header: str | None, path: str) -> None:
    client = client_of(token="s3cret!")
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        reply = client.request(method, path, headers=headers)
        assert reply.status_code == 401
        # A browser then asks its user, so the page can be opened.
        assert reply.headers["www-authenticate"].startswith("Basic ")
    assert client.get("/health", headers=headers).json() == {"status": "ok"}


def test_a_server_without_a_token_ignores_what_a_proxy_passes_on() -> None:
    reply = client_of().get("/api/model", headers={"Authorization": basic("proxy", "user")})
    assert reply.status_code == 200


LARGE = "large" * 20_000
UNREADABLE = [
    b"[" * 100_000,
    b'{"context": ' * 20_000,
    b'{"seed": ' + b"9" * 100_000 + b"}",
    b"\xff\xfe\x00",
    b'{"context": "\xc3"}',
    b"\x00" * 1000,
    b'{"context": "a\x00b", "questions": ["?"]}',
    b"",
    b"null",
    b"NaN",
]


@pytest.mark.parametrize("body", UNREADABLE)
def test_an_unreadable_body_is_refused_in_one_sentence(body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    reply = client_of().post("/api/answer", content=body, headers=headers)
    assert_one_sentence(reply)


@pytest.mark.parametrize(
    "change",
    [
        {LARGE: 1},
        {"strategy": LARGE},
        {"strategy": "top-p:" + "9" * 30},
        {"strategy": "beam:" + "9" * 30},
        {"strategy": "beam:1000000"},
        {"strategy": "beam:1e9"},
        {"strategy": "temperature:nan"},
        {"strategy": "+".join(["top-k"] * 30_000)},
        {"strategy": "greedy\x00"},
        {"strategy": 7},
        {"seed": LARGE},
        {"seed": 2**63},
        {"seed": int("9" * 4000)},
        {"seed": float("nan")},
        {"seed": float("inf")},
        {"seed": 1.5},
        {"seed": True},
        {"questions": LARGE},
        {"questions": [[LARGE]]},
        {"questions": {LARGE: LARGE}},
        {"context": [LARGE]},
    ],
)
def test_wrong_values_are_refused_without_repeating_them(change: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json"}
    content = json.dumps(QUICK | change)
    assert len(content) < MAX_BODY_BYTES
    reply = client_of().post("/api/answer", content=content, headers=headers)
    assert reply.status_code == 422
    assert_one_sentence(reply)


def test_a_long_path_is_not_repeated() -> None:
    reply = client_of().get("/" + LARGE[:10_000])
    assert reply.status_code == 404
    assert_one_sentence(reply)


def assert_one_sentence(reply: httpx2.Response) -> None:
    assert 400 <= reply.status_code < 500
    assert list(reply.json()) == ["error"]
    error = reply.json()["error"]
    assert error.endswith((".", "…"))
    assert len(error) <= MOST_CHARACTERS + 1
    assert "\n" not in error
