"""PDFs that fpdf2 writes: their text, their pages, their paragraphs."""

import logging
import random
import re

import pytest
from fpdf import FPDF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.documents.conftest import Save, new_pdf, pdf_of

from loraqa.documents import read_document
from loraqa.documents.pdf import read_pdf
from loraqa.errors import InputError

TOWN = (
    "The old town lies on the river Aune, which comes from the hills in the north. Its mill was "
    "built by Ruth Olen in 1203, and burned down twice. A bridge of stone has stood there since."
)
BRIDGE = (
    "The bridge has seven arches; the widest of them spans fifteen metres. It was paid for by the "
    "guild of dyers, who had their houses on both sides of the water, and by a tax on salt."
)


def read(pdf: FPDF) -> list[str]:
    """Return the text of each page."""
    document = read_pdf(bytes(pdf.output()), "book.pdf")
    ends = [start - 1 for start in document.pages[1:]] + [len(document.text)]
    return [document.text[slice(*place)] for place in zip(document.pages, ends, strict=True)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pages=st.lists(
        st.lists(st.text(st.sampled_from("abcdefgh éß.,"), min_size=1, max_size=200), max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_each_page_holds_the_words_that_were_written_on_it(
    save: Save, pages: list[list[str]]
) -> None:
    words = [" ".join(paragraphs).split() for paragraphs in pages]
    path = save("book.pdf", pdf_of(pages))
    if not any(words):
        with pytest.raises(InputError, match="PDF without text"):
            read_document(path)
        return
    document = read_document(path)
    ends = [*document.pages[1:], len(document.text) + 1]
    found = [
        document.text[start : end - 1] for start, end in zip(document.pages, ends, strict=True)
    ]
    # A word that is longer than a line is broken without a hyphen.
    assert ["".join(text.split()) for text in found] == ["".join(each) for each in words]


def test_a_paragraph_is_one_line() -> None:
    pdf = new_pdf()
    pdf.add_page()
    for paragraph in (TOWN, BRIDGE):
        pdf.multi_cell(90, 6, paragraph, new_x="LMARGIN", new_y="NEXT")
    assert read(pdf) == [f"{TOWN}\n\n{BRIDGE}"]


@pytest.mark.parametrize("align", ["L", "J", "C", "R"])
@pytest.mark.parametrize("spacing", [5, 6, 9])
def test_alignment_and_spacing_do_not_matter(align: str, spacing: float) -> None:
    pdf = new_pdf()
    pdf.add_page()
    pdf.multi_cell(80, spacing, TOWN, align=align)
    assert read(pdf) == [TOWN]


def test_columns_are_read_one_after_the_other() -> None:
    pdf = new_pdf()
    pdf.add_page()
    with pdf.text_columns(ncols=2, gutter=10, text_align="L") as columns:
        columns.write(" ".join([TOWN] * 30))
    assert read(pdf) == [" ".join([TOWN] * 30)]


def test_headings_lists_heads_and_feet_stay_apart() -> None:
    items = [
        "- The mill",
        "- The bridge over the river Aune, the longest of all in the land",
        "- A",
    ]
    heads = ["A history of the old town and of all its bridges, mills and dams", "Mills"]
    pdf = new_pdf()
    pdf.add_page()
    for head in heads:
        pdf.cell(0, 6, head, new_x="LMARGIN", new_y="NEXT")
        pdf.ln(9)
    pdf.multi_cell(90, 6, TOWN, new_x="LMARGIN", new_y="NEXT")
    for item in items:
        pdf.cell(0, 6, item, new_x="LMARGIN", new_y="NEXT")
    assert read(pdf)[0].split("\n\n") == [*heads, TOWN, "\n".join(items)]


def test_lines_that_no_room_sets_apart_stay_together() -> None:
    """They may be verse, code or rows of a table."""
    pdf = new_pdf()
    pdf.add_page()
    for line in ("The mill is old.", "The bridge is new.", "So is the town."):
        pdf.cell(0, 6, line, new_x="LMARGIN", new_y="NEXT")
    assert read(pdf) == ["The mill is old.\nThe bridge is new.\nSo is the town."]


def test_items_of_several_lines_are_one_list() -> None:
    pdf = new_pdf()
    pdf.add_page()
    for item in (f"- {TOWN}", f"- {BRIDGE}"):
        pdf.multi_cell(90, 6, item, new_x="LMARGIN", new_y="NEXT")
    assert read(pdf) == [f"- {TOWN}\n- {BRIDGE}"]


def test_hyphenated_words_are_joined() -> None:
    pdf = new_pdf()
    pdf.add_page()
    pdf.multi_cell(0, 6, "Nobody knows whether the old mill was an exam-\nple to other towns.")
    assert read(pdf) == ["Nobody knows whether the old mill was an example to other towns."]


def test_a_blank_page_is_counted() -> None:
    pdf = new_pdf()
    pdf.add_page()
    pdf.add_page()
    pdf.write(text="The mill")
    assert read(pdf) == ["", "The mill"]


def scan(pdf: FPDF) -> None:
    pdf.add_page()
    pdf.image(Image.new("RGB", (8, 8), "red"), w=100)


def test_scanned_pages_are_refused_or_told_of(caplog: pytest.LogCaptureFixture) -> None:
    pdf = new_pdf()
    scan(pdf)
    with pytest.raises(InputError, match="PDF without text, such as scanned pages; add the text"):
        read(pdf)
    pdf = new_pdf()
    scan(pdf)
    pdf.add_page()
    pdf.write(text="The mill")
    with caplog.at_level(logging.WARNING, "loraqa"):
        assert read(pdf) == ["", "The mill"]
    assert "1 page of book.pdf" in caplog.text


@pytest.mark.parametrize("password", ["secret", ""])
def test_a_password_is_needed_only_to_open(password: str) -> None:
    pdf = new_pdf()
    pdf.add_page()
    pdf.write(text="The mill")
    pdf.set_encryption(owner_password="owner", user_password=password)
    if password:
        with pytest.raises(InputError, match=r"book\.pdf is a PDF that is protected by a password"):
            read(pdf)
    else:
        assert read(pdf) == ["The mill"]


def test_too_much_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraqa.documents.pdf._MOST_CHARACTERS", 10)
    with pytest.raises(InputError, match="more than 10 characters of text; split it"):
        read_pdf(pdf_of([[TOWN]]), "book.pdf")


def test_a_file_that_lacks_its_end_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    data = pdf_of([[TOWN]])
    with caplog.at_level(logging.WARNING, "loraqa"):
        assert read_pdf(data, "book.pdf").text == TOWN
        assert caplog.text == ""
        assert read_pdf(data[:-6], "book.pdf").text == TOWN
    assert "book.pdf lacks the end of a PDF" in caplog.text


def words_or_refusal(data: bytes) -> set[str]:
    """Return the words of a PDF, or of the place that a message names."""
    try:
        return set(read_pdf(data, "book.pdf").text.split())
    except InputError as error:
        return set(re.split("book.pdf", str(error))[0].split()) - {"Page", "1", "2", "of"}


def test_a_file_that_is_cut_is_refused_or_read_in_part() -> None:
    data = pdf_of([[TOWN], [BRIDGE]])
    for length in range(0, len(data), 7):
        assert words_or_refusal(data[:length]) <= {*TOWN.split(), *BRIDGE.split()}


def test_a_damaged_file_is_refused_or_read() -> None:
    """What is read of it may be wrong."""
    source, data = random.Random(0), pdf_of([[TOWN], [BRIDGE]])
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(source.randint(1, 20)):
            damaged[source.randrange(len(data))] = source.randrange(256)
        words_or_refusal(bytes(damaged))
