"""Documents made by libraries that only write: fpdf2 and python-docx."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import docx
import pytest
from docx.document import Document as WordFile
from fpdf import FPDF

Save = Callable[[str, bytes], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return save


def new_pdf() -> FPDF:
    pdf = FPDF()
    pdf.set_font("Times", size=12)
    return pdf


def pdf_of(pages: Iterable[Iterable[str]]) -> bytes:
    """Return a PDF with these paragraphs on each page."""
    pdf = new_pdf()
    for paragraphs in pages:
        pdf.add_page()
        for paragraph in paragraphs:
            pdf.multi_cell(0, 6, paragraph, new_x="LMARGIN", new_y="NEXT")
    return bytes(pdf.output())


def docx_of(write: Callable[[WordFile], object]) -> bytes:
    document = docx.Document()
    write(document)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()
