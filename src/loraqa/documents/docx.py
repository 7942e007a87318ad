"""The text of a Word file (DOCX), in reading order.

Paragraphs, set apart by blank lines, items of lists and rows of tables are a line each.
"""

import io
from zipfile import ZipFile, ZipInfo

import mammoth

from loraqa.documents.document import Document
from loraqa.documents.html import text_of
from loraqa.errors import InputError, in_a_line

# Elements of XML take many times their size in memory.
_LARGEST = 32 * 2**20
_MAIN = "word/document.xml"
# Arrows from notes back to their marks (CSS selectors).
_LEFT_OUT = ("a[href^='#footnote-ref']", "a[href^='#endnote-ref']")


def read_docx(data: bytes, source: str) -> Document:
    """Return the text of a Word file. It has no pages: they depend on fonts and printers.

    Raises:
        InputError: the file is another ZIP archive, damaged, too large, or has no text.
    """
    try:
        with ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    # Libraries raise errors of many kinds where a file is damaged.
    except Exception as error:
        raise _damaged(source, error) from None
    if not any(entry.filename == _MAIN for entry in entries):
        raise InputError(
            f"{source} is a ZIP archive, but no Word file (DOCX); save the document as DOCX, PDF, "
            "HTML or text."
        )
    if sum(map(_size, entries)) > _LARGEST:
        raise InputError(
            f"{source} unpacks to more than {_LARGEST // 2**20} MiB of XML; split it into several "
            "files."
        )
    try:
        page = mammoth.convert_to_html(
            io.BytesIO(data), convert_image=_no_image, include_embedded_style_map=False
        ).value
    except Exception as error:
        raise _damaged(source, error) from None
    text = text_of(page, _LEFT_OUT)
    if not text:
        raise InputError(f"{source} is a Word file without text; name another file.")
    return Document(text)


def _size(entry: ZipInfo) -> int:
    """Return the bytes that an entry unpacks to; of an image, which is packed, what it grows by."""
    packed = entry.compress_size if entry.filename.startswith("word/media/") else 0
    return entry.file_size - packed


def _no_image(_: object) -> list[object]:
    return []


def _damaged(source: str, error: Exception) -> InputError:
    return InputError(
        f"{source} is a damaged Word file ({in_a_line(error)}); save it again as DOCX."
    )
