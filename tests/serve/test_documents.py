"""Documents over HTTP and on the web page: their text is what `ask` reads of them."""

import time
from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.documents.conftest import docx_of, pdf_of
from tests.serve.conftest import app_of, serving

from loraqa.answer.answered import Answered
from loraqa.documents import Document, parse_document, read_document
from loraqa.serve.guard import MAX_BODY_BYTES, MAX_DOCUMENT_BYTES

TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BYTES = {"Content-Type": "application/octet-stream"}
TOWN = "The old town lies on the river Aune."
MILL = "Its mill 🏭 was built by Ruth Olen in 1203."
PAGE = f"<!doctype html><title>Town</title><p>{TOWN}</p><p>{MILL}</p>".encode()
PDF = pdf_of([[TOWN], ["Its mill was built by Ruth Olen in 1203."]])


def quoting(context: str, questions: Iterable[str], *_: Any, **__: Any) -> list[Answered]:
    """Answer each question with Ruth Olen, and doubt it unless "By" is in the question."""
    start = context.index("Ruth Olen")
    place = (start, start + len("Ruth Olen"))
    sure, unsure = (
        Answered("0", "Ruth Olen", -0.1, -0.1, *place, none, confidence=confidence)
        for none, confidence in ((0.0, 0.7), (0.3, 0.2))
    )
    return [sure if "By" in asked else unsure for asked in questions]


@pytest.fixture
def client() -> TestClient:
    return TestClient(app_of(quoting), base_url="http://localhost")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("town.txt", f"\ufeff{TOWN}\r\n{MILL}".encode()),
        ("town.HTML", PAGE),
        ("town.docx", docx_of(lambda document: document.add_paragraph(TOWN))),
        ("town.pdf", PDF),
    ],
)
def test_the_text_is_that_of_the_file(
    client: TestClient, tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    own = read_document(tmp_path / name)
    reply = client.post("/api/document", params={"name": name}, content=data, headers=BYTES)
    assert reply.status_code == 200
    assert reply.json() == {"text": own.text, "pages": list(own.pages)}
    assert TOWN in own.text


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("town.txt", b" \n", "town.txt is empty"),
        ("", b"", "The document is empty"),
        ("../../etc/town.pdf", b"%PDF-1.7 no more", "town.pdf"),
        ("town.pdf", b"\xff\xfe\x00\x00\x01", "town.pdf is not PDF"),
        ("town.txt", "Mühle".encode("latin-1"), "town.txt"),
        ("town.rtf", rb"{\rtf1 Town}", "town.rtf is an RTF file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(
    client: TestClient, name: str, data: bytes, says: str
) -> None:
    reply = client.post("/api/document", params={"name": name}, content=data, headers=BYTES)
    assert reply.status_code == 422
    assert reply.json()["error"].startswith(says)


def test_a_page_of_another_site_cannot_send_documents(client: TestClient) -> None:
    # What a form or a simple request can send without asking the server first.
    for sent in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        reply = client.post("/api/document", content=PAGE, headers={"Content-Type": sent})
        assert reply.status_code == 415
        assert "application/octet-stream" in reply.json()["error"]


def test_a_document_may_be_larger_than_other_requests(client: TestClient) -> None:
    large = f"<p>{TOWN}</p>".encode() + b" " * MAX_BODY_BYTES
    for data, status in ((large, 200), (b" " * (MAX_DOCUMENT_BYTES + 1), 413)):
        reply = client.post(
            "/api/document", params={"name": "town.html"}, content=data, headers=BYTES
        )
        assert reply.status_code == status


def test_a_pdf_that_nobody_waits_for_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    started, ended = Event(), Event()

    def slow(_: Any) -> str:
        started.set()
        time.sleep(0.05)
        return "page"

    def read(*arguments: Any) -> Document:
        try:
            return parse_document(*arguments)
        finally:
            ended.set()

    monkeypatch.setattr("loraqa.documents.pdf._text", slow)
    monkeypatch.setattr("loraqa.serve.app.parse_document", read)
    # Without a check before each page this would take ten times as long.
    long = pdf_of([["page"]] * 400)
    client = TestClient(app_of(quoting, seconds=1), base_url="http://localhost")
    reply = client.post("/api/document", params={"name": "a.pdf"}, content=long, headers=BYTES)
    assert reply.status_code == 504
    assert started.is_set()
    assert ended.wait(2)


def test_the_page_opens_a_file_and_names_the_page_of_an_answer(
    browser: Any, tmp_path: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    (tmp_path / "town.pdf").write_bytes(PDF)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 no more")
    with serving(app_of(quoting)) as port:
        page = browser.new_page(viewport={"width": 360, "height": 640})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://localhost:{port}/")
        page.locator("#file").set_input_files(tmp_path / "town.pdf")
        page.wait_for_function(f"document.getElementById('context').value.startsWith('{TOWN}')")
        page.locator("#questions").fill("Who built it?\nBy whom?")
        page.get_by_role("button", name="Ask").click()
        page.locator("#answers article").nth(1).wait_for()
        unsure, sure = page.locator("#answers article .facts").all_inner_texts()
        start = read_document(tmp_path / "town.pdf").text.index("Ruth Olen")
        assert unsure == (
            f'confidence 0.20, probably wrong, "no answer" 0.30, page 2, characters {start} to '
            f"{start + 9}"
        )
        assert sure.startswith("confidence 0.70, page 2, ")
        assert page.evaluate(TOO_WIDE) == 0
        found = Axe().run(page).response["violations"]
        assert [(each["id"], node["html"]) for each in found for node in each["nodes"]] == []

        # Pages are those of the file, so another text has none.
        page.locator("#context").fill(MILL)
        page.get_by_role("button", name="Ask").click()
        page.locator("#answers article").first.wait_for()
        first = page.locator("#answers .facts").first.inner_text()
        assert first == 'confidence 0.20, probably wrong, "no answer" 0.30, characters 24 to 33'

        page.locator("#file").set_input_files(tmp_path / "broken.pdf")
        page.locator("#error:not(:empty)").wait_for()
        assert page.locator("#error").inner_text().startswith("broken.pdf")
        assert page.locator("#context").input_value() == MILL
        page.close()
    assert problems == []
