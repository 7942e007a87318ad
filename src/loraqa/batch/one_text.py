"""A table of questions that are all about one text, which is in a file of its own."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from loraqa.batch.source import Column, Position, Record, Reply, Source, Writer
from loraqa.documents import Document
from loraqa.errors import InputError
from loraqa.squad.checks import Checks


def columns_of(document: Document) -> dict[str, Column]:
    """Return the columns that are added where all questions are about a document."""
    return {"page": Column(int, partial(_page, document))} if document.pages else {}


def _page(document: Document, reply: Reply) -> int | None:
    return document.page_at(reply.start)


class AboutOneText:
    """A table without contexts; each record gets the text as its context."""

    def __init__(self, source: Source, text: str) -> None:
        self.path = source.path
        self.start = source.start
        self.suffixes = source.suffixes
        self._source, self._text = source, text

    def records(self, position: Position, checks: Checks) -> Iterator[Record]:
        """Yield the records from a position on; raise `InputError` if one has a context."""
        for record in self._source.records(position, checks):
            if "context" in record.fields:
                raise InputError(
                    f"{self.path}, {record.place}: has a context of its own; leave out "
                    "--context-file, or the contexts of the table."
                )
            yield record._replace(fields={**record.fields, "context": self._text})

    def writing(self, path: Path) -> AbstractContextManager[Writer]:
        """Return a writer of a file in the same format, which has no contexts either."""
        return self._source.writing(path)
