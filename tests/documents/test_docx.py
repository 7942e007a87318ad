"""Word files that python-docx writes, and some that are damaged."""

import io
import random
import zipfile

import pytest
from docx.document import Document as WordFile
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.documents.conftest import docx_of

from loraqa.documents.docx import read_docx
from loraqa.errors import InputError

# The least that a Word file holds.
PARTS = {
    "[Content_Types].xml": (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="xml" ContentType="application/xml"/></Types>'
    ),
    "_rels/.rels": (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="r" Type="http://schemas.openxmlformats.org/officeDocument/2006/'
        'relationships/officeDocument" Target="word/document.xml"/></Relationships>'
    ),
    "word/document.xml": (
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        "<w:body><w:p><w:r><w:t>The mill is old.</w:t></w:r></w:p></w:body></w:document>"
    ),
}


def packed(parts: dict[str, str | bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def text(data: bytes) -> str:
    return read_docx(data, "book.docx").text


def test_paragraphs_and_tables_are_in_reading_order() -> None:
    def write(document: WordFile) -> None:
        document.add_heading("The old town", 1)
        paragraph = document.add_paragraph("Built by ")
        paragraph.add_run("Ru").bold = True
        paragraph.add_run("th").italic = True
        paragraph.add_run(" Olen & <others>.")
        table = document.add_table(2, 2)
        for row, words in enumerate([("Name", "Year"), ("Ruth", "1203")]):
            for column, word in enumerate(words):
                table.cell(row, column).text = word
        document.add_paragraph("Mill", style="List Bullet")
        document.add_page_break()
        document.add_paragraph("The\tend")

    assert text(docx_of(write)).split("\n\n") == [
        "The old town",
        "Built by Ruth Olen & <others>.",
        "Name Year\nRuth 1203\nMill",
        "The end",
    ]


@settings(max_examples=8)
@given(st.lists(st.text(st.sampled_from("ab<>&;é😀\"' ")), min_size=1, max_size=5))
def test_a_blank_line_is_between_paragraphs(paragraphs: list[str]) -> None:
    shown = list(filter(None, (" ".join(each.split()) for each in paragraphs)))

    def write(document: WordFile) -> None:
        for paragraph in paragraphs:
            document.add_paragraph(paragraph)

    if shown:
        assert text(docx_of(write)) == "\n\n".join(shown)
    else:
        with pytest.raises(InputError, match="Word file without text"):
            text(docx_of(write))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packed({"a.txt": "a"}), "is a ZIP archive, but no Word file"),
        (packed({}), "is a ZIP archive, but no Word file"),
        (packed(PARTS)[:300], "is a damaged Word file"),
        (packed(PARTS | {"word/document.xml": "<a>"}), "is a damaged Word file"),
        (packed(PARTS | {"word/document.xml": "<a/>"}), "Word file"),
        (packed(PARTS | {"word/numbering.xml": " " * 2**26}), "more than 32 MiB of XML; split it"),
        (packed(PARTS | {"word/media/a.png": b"\0" * 2**26}), "more than 32 MiB of XML; split it"),
    ],
)
def test_what_cannot_be_read_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        text(data)
    assert str(refused.value).startswith("book.docx ")


def test_pictures_do_not_count_and_are_not_read() -> None:
    noise = random.Random(0).randbytes(40 * 2**20)
    assert text(packed(PARTS | {"word/media/a.png": noise})) == "The mill is old."


def test_an_archive_cannot_lie_about_its_size() -> None:
    honest = packed(PARTS | {"word/document.xml": f"<!--{'a' * 2**26}-->"})
    size = (2**26 + 7).to_bytes(4, "little")
    assert honest.count(size) == 2
    with pytest.raises(InputError, match="is a damaged Word file"):
        text(honest.replace(size, (1000).to_bytes(4, "little")))


def test_entities_do_not_multiply() -> None:
    entities = '<!ENTITY a0 "The mill is old.">' + "".join(
        f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9)
    )
    xml = PARTS["word/document.xml"].replace("The mill is old.", "&a9;")
    with pytest.raises(InputError, match="is a damaged Word file"):
        text(packed(PARTS | {"word/document.xml": f"<!DOCTYPE w:document [{entities}]>{xml}"}))


def read_or_refused(data: bytes) -> bool:
    try:
        return text(data) != ""
    except InputError as error:
        return str(error).startswith("book.docx ")


def test_damaged_files_are_read_or_refused() -> None:
    source = random.Random(0)
    for _ in range(300):
        name = source.choice(sorted(PARTS))
        part = bytearray(PARTS[name].encode())
        for _ in range(source.randint(1, 3)):
            part[source.randrange(len(part))] = source.randrange(256)
        data = packed(PARTS | {name: bytes(part)})
        damaged = bytearray(data)
        damaged[source.randrange(len(data))] ^= 1 << source.randrange(8)
        for each in (data, bytes(damaged), data[: source.randrange(len(data))]):
            assert read_or_refused(each)
