"""Find out by its first bytes what a file is, and read it."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from loraqa.documents.document import Document
from loraqa.errors import InputError, LoraqaError
from loraqa.squad.text import BYTE_ORDER_MARK, decode, read_source

# A comment ends at the first -->. Without the atomic group (?>…) the search would try all ways to
# join comments.
_HTML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(?:(?><!--.{0,1000}?-->)\s*)*<(!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
# What the endings of names say.
_NAMES = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), "HTML"),
    ".docx": "DOCX",
    ".pdf": "PDF",
}
_REFUSED = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office file, or one protected by a password",
    rb"{\rtf": "an RTF file",
}


def read_document(path: Path) -> Document:
    """Return the text of a file, or of standard input if `path` is "-".

    PDF, HTML and DOCX are known by their first bytes, and HTML by the ending of its name too. All
    else is text in UTF-8, of which line ends are kept; a byte order mark is removed.

    Raises:
        InputError: the file cannot be read, is damaged, empty, too large, protected, or of another
            kind.
        LoraqaError: a library that reads this kind is not installed.
    """
    return parse_document(*read_source(path), path.suffix)


def parse_document(
    data: bytes, source: str, ending: str, check: Callable[[], None] = lambda: None
) -> Document:
    """Return the text of a file's bytes, like `read_document`.

    Args:
        data: the bytes.
        source: what messages call the file.
        ending: the ending of its name, such as ".html".
        check: called before each page of a PDF; what it raises ends the reading.
    """
    if not data.strip():
        raise InputError(f"{source} is empty; name another file.")
    named = _NAMES.get(ending.lower())
    for start, kind in _REFUSED.items():
        if data.startswith(start):
            raise InputError(f"{source} is {kind}; save it as DOCX or PDF without a password.")
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _by_library("DOCX", _docx, data, source)
    if data.lstrip().startswith(b"%PDF-"):
        return _by_library("PDF", partial(_pdf, check=check), data, source)
    if _is_html(data) or (named == "HTML" and not _is_binary(data)):
        return _by_library("HTML", _html, data, source)
    try:
        return Document(decode(data, source).removeprefix(BYTE_ORDER_MARK))
    except InputError:
        if named is None:
            raise
        raise InputError(
            f"{source} is not {named}, although its name says so, nor text; save the document "
            "again, or name another file."
        ) from None


def _is_binary(data: bytes) -> bool:
    return b"\0" in data and not data.startswith(_BYTE_ORDER_MARKS)


def _is_html(data: bytes) -> bool:
    start = data[:4096]
    for mark in _BYTE_ORDER_MARKS:
        start = start.removeprefix(mark)
    # In UTF-16 each ASCII character has a zero byte.
    return _HTML.match(start.replace(b"\0", b"")) is not None


def _by_library(
    kind: str, read: Callable[[bytes, str], Document], data: bytes, source: str
) -> Document:
    try:
        return read(data, source)
    except ModuleNotFoundError as error:
        raise LoraqaError(
            f"{source} is {kind}, which needs {error.name}; install it with "
            "`pip install -e '.[documents]'`."
        ) from None


def _pdf(data: bytes, source: str, check: Callable[[], None]) -> Document:
    from loraqa.documents.pdf import read_pdf

    return read_pdf(data, source, check)


def _html(data: bytes, source: str) -> Document:
    from loraqa.documents.html import read_html

    return read_html(data, source)


def _docx(data: bytes, source: str) -> Document:
    from loraqa.documents.docx import read_docx

    return read_docx(data, source)
