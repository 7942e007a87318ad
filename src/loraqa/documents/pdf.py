"""The text of a PDF, page by page, with its paragraphs put together again from their lines.

Blank lines set apart what has room above it, and paragraphs of several lines. PDFium joins words
that are hyphenated at the end of a line.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pypdfium2
import pypdfium2.raw

from loraqa.documents.document import Document
from loraqa.documents.lines import joined
from loraqa.errors import InputError, counted, in_a_line

logger = logging.getLogger("loraqa")

_MOST_CHARACTERS = 20_000_000
# What a whole PDF ends with, and in how many last bytes.
_END = b"%%EOF"
_LENGTH_OF_END = 1024
_LINE_END = "\r\n"
_ITEM = re.compile(r"[•◦▪‣·*–—-]\s")
# A shorter line, as a multiple of its height, is an item of a list and no line of a paragraph.
_SHORTEST = 8
# A blank is about a quarter of the font's size wide, and a line a little higher than that size.
_BLANK = 0.2
# How many lines on each side show how far a line could reach.
_NEIGHBOURS = 3


def read_pdf(data: bytes, source: str, check: Callable[[], None] = lambda: None) -> Document:
    """Return the text of a PDF and its pages. `check` is called before each page.

    Raises:
        InputError: the file is protected by a password, damaged, too large, or has no text.
    """
    with _opened(data, source) as pdf:
        pages, pictures, characters = [], 0, 0
        for number in range(1, len(pdf) + 1):
            check()
            try:
                page = pdf[number - 1]
                text = _text(page)
                pictures += not text and _has_picture(page)
                page.close()
            # Not only PDFium's own errors: what it returns may be nonsense.
            except Exception as error:
                raise _damaged(f"Page {number} of {source}", error) from None
            pages.append(text)
            characters += len(text)
            if characters > _MOST_CHARACTERS:
                raise InputError(
                    f"{source} has more than {_MOST_CHARACTERS:,} characters of text; split it "
                    "into several files."
                )
    if not any(pages):
        raise InputError(
            f"{source} is a PDF without text, such as scanned pages; add the text by OCR first, "
            "for example with ocrmypdf."
        )
    if pictures:
        logger.warning(
            "%s of %s hold pictures and no text; if they are scanned, add the text by OCR, for "
            "example with ocrmypdf.",
            counted(pictures, "page"),
            source,
        )
    if _END not in data[-_LENGTH_OF_END:]:
        logger.warning(
            "%s lacks the end of a PDF, so pages may be missing; look for the whole file.", source
        )
    return Document.of_pages(pages)


def _opened(data: bytes, source: str) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY):
            raise InputError(
                f"{source} is a PDF that is protected by a password; save it without one."
            ) from None
        raise _damaged(source, error) from None


def _damaged(place: str, error: Exception) -> InputError:
    return InputError(
        f"{place} cannot be read as PDF ({in_a_line(error)}); open the file in another program and "
        "save it again."
    )


def _has_picture(page: pypdfium2.PdfPage) -> bool:
    kinds = [pypdfium2.raw.FPDF_PAGEOBJ_IMAGE]
    return any(True for _ in page.get_objects(filter=kinds))


def _text(page: pypdfium2.PdfPage) -> str:
    characters = page.get_textpage()
    try:
        lines = list(_lines(characters))
    finally:
        characters.close()
    paragraphs = [each for block in _blocks(lines) for each in _paragraphs(block)]
    text: list[str] = []
    for number, paragraph in enumerate(paragraphs):
        if number and _are_apart(paragraphs[number - 1], paragraph):
            text.append("")
        text.append(" ".join(line.text for line in paragraph))
    return joined(text)


class _Line(NamedTuple):
    """A line as printed, with lengths in points from the lower left corner of the page.

    Attributes:
        left, top: where its first character begins.
        right, bottom: where its last character ends, which is in the next line as printed if a
            word was hyphenated.
        height: of its first character.
        word: width of its first word.
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    height: float
    word: float


def _lines(characters: pypdfium2.PdfTextPage) -> Iterator[_Line]:
    """Yield the lines that are not blank."""
    start = 0
    for text in characters.get_text_range(errors="surrogatepass").split(_LINE_END):
        if words := text.split():
            first = start + _units(text[: text.index(words[0])])
            last = start + _units(text.rstrip()) - 1
            end_of_word = first + _units(words[0]) - 1
            left, below, _, top = _box(characters, first)
            _, bottom, right, _ = _box(characters, last)
            word = _box(characters, end_of_word)[2] - left
            yield _Line(text, left, top, right, bottom, top - below, word)
        start += _units(text + _LINE_END)


def _units(text: str) -> int:
    """Return how many units of UTF-16, in which PDFium counts, a text has."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _box(characters: pypdfium2.PdfTextPage, place: int) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of a character's place in its line."""
    index = pypdfium2.raw.FPDFText_GetCharIndexFromTextIndex(characters, place)
    left, bottom, right, top = characters.get_charbox(index, loose=True)
    return left, bottom, right, top


def _blocks(lines: Iterable[_Line]) -> list[list[_Line]]:
    """Set apart items of lists, and what is a line's height or more below the line before it.

    Such are headings, and the heads and feet of pages.
    """
    blocks: list[list[_Line]] = []
    for line in lines:
        before = blocks[-1][-1] if blocks else None
        if before is None or _is_item(line) or _has_room(before, line):
            blocks.append([])
        blocks[-1].append(line)
    return blocks


def _paragraphs(block: Sequence[_Line]) -> Iterator[list[_Line]]:
    paragraph = []
    for number, line in enumerate(block):
        paragraph.append(line)
        if not _goes_on(block, number):
            yield paragraph
            paragraph = []


def _are_apart(before: Sequence[_Line], after: Sequence[_Line]) -> bool:
    """Return whether a blank line belongs between two paragraphs.

    Without room between them, single lines may be verse, code or rows of a table, and items are
    those of one list.
    """
    if _has_room(before[-1], after[0]):
        return True
    return len(before) + len(after) > 2 and not (_is_item(before[0]) and _is_item(after[0]))


def _goes_on(block: Sequence[_Line], number: int) -> bool:
    """Return whether a paragraph goes on in the next line.

    It does if the next line's first word had no room left in this one.
    """
    line = block[number]
    if number + 1 == len(block) or line.right - line.left < _SHORTEST * line.height:
        return False
    beside = block[max(number - _NEIGHBOURS, 0) : number + _NEIGHBOURS + 1]
    edge = max(each.right for each in beside if _in_one_column(line, each))
    return line.right + _BLANK * line.height + block[number + 1].word > edge


def _is_item(line: _Line) -> bool:
    return _ITEM.match(line.text.lstrip()) is not None


def _has_room(before: _Line, line: _Line) -> bool:
    """Return whether a line is a line's height or more below the line before it."""
    return before.bottom - line.top > before.height


def _in_one_column(one: _Line, other: _Line) -> bool:
    return one.left < other.right and other.left < one.right
