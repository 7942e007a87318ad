"""Find out which format a file has.

The first bytes of Parquet decide, then the names .parquet, .csv and .tsv, then the first character.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loraqa.batch.delimited import Delimited
from loraqa.batch.json_lines import JsonLines
from loraqa.batch.one_text import AboutOneText, columns_of
from loraqa.batch.source import COLUMNS, Column, Source
from loraqa.documents import Document
from loraqa.errors import InputError
from loraqa.squad.text import BYTE_ORDER_MARK, explaining_unreadable

# So much of a file is looked at.
_BEGINNING = 2**16


def open_source(path: Path, prefix: str = "", document: Document | None = None) -> Source:
    """Return the table of questions in a file.

    Args:
        path: the file.
        prefix: what stands before the names of the columns that are added to it.
        document: what all questions are about, if the table has no contexts.

    Raises:
        InputError: the file cannot be read, or is no table of questions.
    """
    if document is None:
        return _open(path, prefix, COLUMNS, ("context", "question"))
    columns = {**COLUMNS, **columns_of(document)}
    return AboutOneText(_open(path, prefix, columns, ("question",)), document.text)


def _open(path: Path, prefix: str, columns: Mapping[str, Column], needed: Sequence[str]) -> Source:
    added = {f"{prefix}{name}": column for name, column in columns.items()}
    with explaining_unreadable(path), path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    suffix = path.suffix.lower()
    if beginning.startswith(b"\x1f\x8b"):
        raise InputError(f"{path} is compressed; decompress it (`gunzip`).")
    if beginning.startswith(b"PAR1") or suffix == ".parquet":
        from loraqa.batch.parquet import Parquet

        return Parquet(path, added, needed)
    text = beginning.removeprefix(BYTE_ORDER_MARK.encode()).lstrip()
    if not text and len(beginning) < _BEGINNING:
        raise InputError(f"{path} is empty; name another file.")
    if suffix in Delimited.suffixes:
        return Delimited(path, added, needed)
    if text.startswith(b"[") or beginning.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        raise InputError(
            f"{path} is neither CSV, JSON Lines nor Parquet; write its rows as one of these."
        )
    return (
        JsonLines(path, added)
        if text.startswith(b"{") or suffix in JsonLines.suffixes
        else Delimited(path, added, needed)
    )


def check_same_format(source: Source, out: Path) -> None:
    """Raise `InputError` if the name of the output promises another format."""
    known = (*Delimited.suffixes, *JsonLines.suffixes, ".parquet")
    suffix = out.suffix.lower()
    if suffix not in source.suffixes and (suffix in known or suffix == ".gz"):
        raise InputError(
            f"{out} will be in the format of {source.path}; give it a name that ends with "
            f"{source.suffixes[0]}."
        )
