"""The text of an HTML page: each block is a line, and so is each row of a table.

Blank lines are where browsers leave room, as between paragraphs, and around headings.
"""

import re
from collections.abc import Collection

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

from loraqa.documents.document import Document
from loraqa.documents.lines import joined
from loraqa.errors import InputError

# A tree in memory has many times the size of its file.
_LARGEST = 32 * 2**20
# What is no content of the page (CSS selectors); scripts, styles and forms are left out anyway.
_LEFT_OUT = (
    *("nav", "[role=navigation]", "[hidden]", "template"),
    # Links to headings, such as ¶, in pages by Sphinx and MkDocs, Docusaurus, and rustdoc.
    *("a.headerlink", "a.hash-link", "a.doc-anchor"),
)
# As a block, a paragraph would take the row of its cell apart.
_ONLY_PARAGRAPH_OF_CELL = re.compile(
    r"(<t[dh]\b[^<>]*>)\s*<p\b[^<>]*>((?:(?!</?(?:p|t[dh])\b).)*)</p>\s*(?=</t[dh]>)",
    re.DOTALL | re.IGNORECASE,
)


def read_html(data: bytes, source: str) -> Document:
    """Return the text of a page in any encoding.

    Raises:
        InputError: the page is too large, or has no text.
    """
    if len(data) > _LARGEST:
        raise InputError(
            f"{source} has more than {_LARGEST // 2**20} MiB of HTML; split it into several files."
        )
    text = text_of(_decoded(data), _LEFT_OUT)
    if not text:
        raise InputError(f"{source} is HTML without text; save the page as a browser shows it.")
    return Document(text)


def _decoded(data: bytes) -> str:
    """Decode UTF-8, or else what the page says, or else what is guessed.

    Text in another encoding hardly ever is UTF-8, whereas the library takes some of it for another.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return bytes_to_str(data, detect_encoding(data, from_html_meta=True) or "utf-8")


def text_of(page: str, left_out: Collection[str]) -> str:
    """Return the text of a page without the elements that the CSS selectors in `left_out` name."""
    # A bad character reference may stand for half a character.
    page = page.encode("utf-8", "replace").decode()
    page = _ONLY_PARAGRAPH_OF_CELL.sub(r"\1\2", page)
    text = extract_plain_text(
        page, list_bullets=False, alt_texts=False, skip_elements=list(left_out)
    )
    return joined(text.split("\n"))
