"""A text and its pages."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# Between two pages.
_SEPARATOR = "\n"


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
        """Return the document with these pages."""
        starts, start = [], 0
        for text in texts:
            starts.append(start)
            start += len(text) + len(_SEPARATOR)
        return cls(_SEPARATOR.join(texts), tuple(starts))

    def page_at(self, offset: int | None) -> int | None:
        """Return the number of the page, from 1, that holds an offset.

        It is None if the document has no pages, or the offset is None.
        """
        if offset is None or not self.pages:
            return None
        return bisect_right(self.pages, offset)
