"""A text and its pages."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# What ends a paragraph at the end of a page. Otherwise it goes on, on the next page.
_END = re.compile(r"[.!?…:][\"'”’»)\]]*$")


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file.

    Attributes:
        text: what is read; all offsets count its characters (Unicode code points).
        pages: the offset at which each page starts, in order; empty if the file has no pages.
    """

    text: str
    pages: tuple[int, ...] = ()

    @classmethod
    def of_pages(cls, texts: Sequence[str]) -> "Document":
        """Return the document with these pages.

        A line end stands between them, and a blank line where a page ends with a sentence.
        """
        starts, written = [], ""
        for number, text in enumerate(texts):
            if number:
                written += "\n\n" if _END.search(texts[number - 1]) else "\n"
            starts.append(len(written))
            written += text
        return cls(written, tuple(starts))

    def page_at(self, offset: int | None) -> int | None:
        """Return the number of the page, from 1, that holds an offset.

        It is None if the document has no pages, or the offset is None.
        """
        if offset is None or not self.pages:
            return None
        return bisect_right(self.pages, offset)
