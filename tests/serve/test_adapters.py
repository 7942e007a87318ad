"""A server of several adapters: each request is answered by the one that it names."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.conftest import TOWN, Call
from tests.random_runs import random_run
from tests.serve.conftest import app_of, serving

from loraqa.answer.readers import Readers
from loraqa.reader import Reader, load_readers
from loraqa.serve.app import Served, create_app

QUESTIONS = ["Who built the mill?", "When?"]
BODY = {"context": TOWN, "questions": QUESTIONS, "strategy": "span"}
SUM = "law:0.7+news:0.3"


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "law": random_run(folder / "law", tiny_folder, 1),
        "news": random_run(folder / "news", tiny_folder, 2, target_modules="c_attn[q,v]"),
        "dora": random_run(folder / "dora", tiny_folder, 3, dora=True),
    }


@pytest.fixture(scope="module")
def readers(runs: dict[str, Path]) -> Readers:
    return load_readers(runs)


@pytest.fixture(scope="module")
def app(readers: Readers, runs: dict[str, Path]) -> Any:
    first = readers["law"]
    return create_app(first, Served.describe(runs["law"], first, readers), readers)


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def texts(client: TestClient, **more: Any) -> Any:
    return client.post("/api/answer", json=BODY | more).json()["answers"]


def test_a_request_is_answered_by_the_adapter_that_it_names(
    client: TestClient, readers: Readers
) -> None:
    def own(choice: str) -> list[dict[str, Any]]:
        return [asdict(each) for each in readers.choose(choice).answer(TOWN, QUESTIONS)]

    for choice in [*readers, SUM, "news:-1", "dora:1"]:
        assert texts(client, adapter=choice) == own(choice)
    assert texts(client) == texts(client, adapter=None) == own("law")
    assert own("law") != own("news") != own(SUM)


def test_concurrent_requests_do_not_mix(client: TestClient) -> None:
    choices = ["law", "news", SUM, "dora"]
    expected = {choice: texts(client, adapter=choice) for choice in choices}
    with ThreadPoolExecutor(4) as several:
        asked = choices * 4
        found = several.map(lambda choice: texts(client, adapter=choice), asked)
        assert list(found) == [expected[choice] for choice in asked]


def test_the_names_are_listed(client: TestClient, runs: dict[str, Path]) -> None:
    described = client.get("/api/model").json()
    assert described["adapters"] == list(runs)
    assert described["adapter"] == str(runs["law"])


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ("laws", "There is no adapter 'laws' (did you mean law?); give one of law, news, dora, or"),
        ("x" * 5000, "There is no adapter"),
        ("", "There is no adapter ''"),
        ("law:1+news", "gives news no weight"),
        ("law:1+dora:1", "dora was trained with DoRA"),
        (7, "adapter: Input should be a valid string"),
    ],
)
def test_a_wrong_choice_is_refused_in_one_sentence(
    client: TestClient, adapter: Any, says: str
) -> None:
    reply = client.post("/api/answer", json=BODY | {"adapter": adapter})
    assert reply.status_code == 422
    assert reply.json()["error"].startswith(says) or says in reply.json()["error"]
    assert len(reply.json()["error"]) < 400


def test_a_server_of_one_adapter_has_nothing_to_choose_from() -> None:
    with TestClient(app_of(None), base_url="http://localhost") as client:
        reply = client.post("/api/answer", json=BODY | {"adapter": "law"})
    assert reply.status_code == 422
    assert "has no adapters to choose from" in reply.json()["error"]


def test_the_page_lets_users_choose(browser: Any, app: Any, readers: Readers) -> None:
    with serving(app) as port:
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_label("Text", exact=True).fill(TOWN)
        page.get_by_label("Questions").fill("\n".join(QUESTIONS))
        adapters = page.get_by_label("Adapter")
        adapters.wait_for()
        assert adapters.locator("option").all_inner_texts() == list(readers)
        for name in ("law", "news"):
            adapters.select_option(name)
            page.get_by_role("button", name="Ask").click()
            page.locator("article").first.wait_for()
            own = [
                each.text or "no answer" for each in readers[name].answer(TOWN, QUESTIONS, "span")
            ]
            assert page.locator(".answer").all_inner_texts() == own
        page.close()
    assert problems == []


def test_the_page_of_one_model_offers_no_choice(browser: Any, runs: dict[str, Path]) -> None:
    reader = Reader.load(runs["law"])
    with serving(create_app(reader, Served.describe(runs["law"], reader))) as port:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_text("fine-tuned with LoRA").wait_for()
        assert page.locator("#adapter").is_hidden()
        page.get_by_role("button", name="Ask").click()
        page.locator("article").first.wait_for()
        page.close()


def test_the_command_serves_runs_by_their_names(runs: dict[str, Path], readers: Readers) -> None:
    command = [sys.executable, "-m", "loraqa", "serve", str(runs["law"]), "--port", "0"]
    command += ["--adapter", f"news={runs['news']}", "--windows", "all"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        port = next(found[1] for line in lines if (found := re.search(r"http://.*:(\d+)", line)))

        def reply(path: str, body: Any = None) -> Any:
            data = json.dumps(body).encode() if body else None
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data, headers)
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)

        names = reply("api/model")["adapters"]
        found = {
            choice: reply("api/answer", BODY | {"adapter": choice})["answers"]
            for choice in ("law", "news", SUM)
        }
        server.send_signal(signal.SIGINT)
        rest = server.stderr.read()
    assert names == ["law", "news"]
    for choice, answers in found.items():
        expected = readers.choose(choice).answer(TOWN, QUESTIONS)
        assert [each["text"] for each in answers] == [each.text for each in expected]
    assert (server.returncode, "Traceback" in rest) == (0, False)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("news", "--adapter 'news' is not NAME=RUN"),
        ("=runs/news", "cannot be the name of an adapter"),
        ("a+b={news}", "cannot be the name of an adapter"),
        ("news={news}/gone", "There is no folder"),
        ("law={news}", "has the name of"),
    ],
)
def test_a_wrong_adapter_is_refused_before_anything_is_loaded(
    call: Call, runs: dict[str, Path], option: str, says: str
) -> None:
    given = option.format(news=runs["news"])
    status, _, error = call("serve", runs["law"], "--adapter", given)
    assert (status, len(error.splitlines())) == (2, 1)
    assert says in error


def test_the_first_must_be_an_adapter_too(
    call: Call, runs: dict[str, Path], tiny_folder: Path
) -> None:
    status, _, error = call("serve", tiny_folder, "--adapter", f"news={runs['news']}")
    assert status == 2
    assert "holds no adapter" in error


def test_a_sum_is_exported_as_an_adapter(
    call: Call, runs: dict[str, Path], readers: Readers, tmp_path: Path
) -> None:
    named = [word for name in ("law", "news") for word in ("--adapter", f"{name}={runs[name]}")]
    out = tmp_path / "sum"
    status, _, error = call("export", SUM, *named, "--out", out)
    assert status == 0, error
    found = Reader.load(out).answer(TOWN, QUESTIONS)
    expected = readers.choose(SUM).answer(TOWN, QUESTIONS)
    assert [each.text for each in found] == [each.text for each in expected]

    status, _, error = call("export", "law:1+x:1", *named, "--out", tmp_path / "other")
    assert (status, "There is no adapter 'x'" in error) == (2, True)
    merged = ("--format", "merged", "--out", tmp_path / "other")
    status, _, error = call("export", SUM, *named, *merged)
    assert (status, "A sum is written as an adapter" in error) == (2, True)
    assert not (tmp_path / "other").exists()
