"""What a file is, is told by its bytes."""

import sys
from pathlib import Path

import pytest
from tests.documents.conftest import Save, docx_of, pdf_of

from loraqa.documents import Document, read_document
from loraqa.errors import InputError, LoraqaError

MILL = "The mill is old."
PAGE = f"<html><body><p>{MILL}</p></body></html>"
PDF = pdf_of([[MILL]])
DOCX = docx_of(lambda document: document.add_paragraph(MILL))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", MILL.encode()),
        ("a.pdf", PDF),
        ("a.txt", PDF),
        ("a", b"\n" + PDF),
        ("a.docx", DOCX),
        ("a.zip", DOCX),
        ("a.html", PAGE.encode()),
        ("a.txt", PAGE.encode()),
        ("a", PAGE.encode("utf-8-sig")),
        ("a", PAGE.encode("utf-16")),
        ("a", f"\n<!-- saved -->\n<!DOCTYPE html PUBLIC 'x'><p>{MILL}".encode()),
        ("a", f'<?xml version="1.0" encoding="utf-8"?>\n{PAGE}'.encode()),
        ("a.htm", f"<p>{MILL}".encode()),
    ],
)
def test_the_kind_is_told_by_the_content(save: Save, name: str, data: bytes) -> None:
    document = read_document(save(name, data))
    assert document.text == MILL
    assert document.pages == ((0,) if b"%PDF-" in data else ())


@pytest.mark.parametrize(
    "text",
    [
        "\r\n The  mill\tis old.\n\n",
        "PKW are cars.",
        "<p>is how a paragraph begins in HTML",
        "<headline>a",
        "A PDF begins with %PDF-1.7.",
    ],
)
def test_plain_text_stays_as_it_is(save: Save, text: str) -> None:
    assert read_document(save("a.txt", text.encode("utf-8-sig"))) == Document(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"%PDF-1.7", "cannot be read as PDF"),
        (PDF[:200], "cannot be read as PDF"),
        (b"PK\x03\x04", "is a damaged Word file"),
        (rb"{\rtf1 a}", "is an RTF file; save it as DOCX"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "is an old Office file, or one protected by"),
        (b"\x89PNG\r\n\x1a\n\0", "is a binary file"),
        (b"<html></html>", "is HTML without text"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(
    save: Save, data: bytes, message: str
) -> None:
    path = save("a.bin", data)
    with pytest.raises(InputError, match=message) as refused:
        read_document(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.docx", "DOCX"), ("a.PDF", "PDF"), ("a.html", "HTML")]
)
@pytest.mark.parametrize("data", [b"\xe9\0\x01 noise", b"\x89PNG\r\n\x1a\n\0"])
def test_binary_files_are_not_what_their_name_says(
    save: Save, name: str, kind: str, data: bytes
) -> None:
    path = save(name, data)
    with pytest.raises(InputError) as refused:
        read_document(path)
    assert str(refused.value) == (
        f"{path} is not {kind}, although its name says so, nor text; save the document again, or "
        "name another file."
    )


@pytest.mark.parametrize(
    ("data", "module", "package"),
    [
        (PDF, "pdf", "pypdfium2"),
        (PAGE.encode(), "html", "resiliparse.extract.html2text"),
        (DOCX, "docx", "mammoth"),
    ],
)
def test_a_missing_library_is_named(
    save: Save, monkeypatch: pytest.MonkeyPatch, data: bytes, module: str, package: str
) -> None:
    monkeypatch.delitem(sys.modules, f"loraqa.documents.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoraqaError, match="install it with") as refused:
        read_document(save("a", data))
    assert f"needs {package.partition('.')[0]}" in str(refused.value)
    assert "'.[documents]'" in str(refused.value)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_document(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_document(tmp_path / "gone.pdf")


def test_many_comments_before_a_text_are_read_at_once(save: Save) -> None:
    comments = "<!---->" * 60 + "<!-- a -->\n"
    assert read_document(save("notes.txt", f"{comments}Town".encode())).text == f"{comments}Town"
    assert read_document(save("page", f"{comments}<html><p>Town".encode())).text == "Town"
