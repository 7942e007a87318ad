"""Read text files; errors say in one sentence what is wrong."""

import codecs
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraqa.errors import InputError

BYTE_ORDER_MARK = "\ufeff"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# What text most probably is that has no mark and is not UTF-8.
_WINDOWS = "WINDOWS-1252"


def read_bytes(path: Path) -> bytes:
    """Return the whole file; raise `InputError` if it cannot be read or is empty."""
    with explaining_unreadable(path):
        data = path.read_bytes()
    if not data.strip():
        raise InputError(f"{path} is empty; name another file.")
    return data


@contextmanager
def explaining_unreadable(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into `InputError`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name a file in it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); check the path.") from None


def read_text(path: Path) -> str:
    """Return the text of a file, or of standard input if `path` is "-".

    Line ends are kept, so that offsets match the file; a byte order mark is removed. Raises
    `InputError` like `read_bytes` and `decode`.
    """
    return decode(*read_source(path)).removeprefix(BYTE_ORDER_MARK)


def read_source(path: Path) -> tuple[bytes, str]:
    """Return the bytes of a file, or of standard input if `path` is "-", and a name for messages.

    Raises `InputError` like `read_bytes`.
    """
    if str(path) == "-":
        return sys.stdin.buffer.read(), "standard input"
    return read_bytes(path), str(path)


def decode(data: bytes, source: str, line: int = 1, offset: int = 0) -> str:
    """Decode UTF-8, keeping a byte order mark; raise `InputError` if `data` is not UTF-8.

    Args:
        data: the whole source, or a part of it.
        source: its name, for the message.
        line, offset: where the part begins: the number of its line, and of bytes before it.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if is_binary(data):
            raise InputError(f"{source} is a binary file, not text; name another file.") from None
        line += data.count(b"\n", 0, error.start)
        encoding, where = _WINDOWS, f"line {line} has"
        if not offset and data.startswith(_UTF16_MARKS):
            encoding, where = "UTF-16", "its byte order mark begins with"
        raise InputError(
            f"{source} is not UTF-8: {where} the byte 0x{data[error.start]:02X} "
            f"(byte {offset + error.start} of the file); save it as UTF-8 (Excel: CSV UTF-8), or "
            f"convert it from {encoding}: `iconv -f {encoding} -t UTF-8 OLD > NEW`."
        ) from None


def is_binary(data: bytes) -> bool:
    """Return whether bytes are no text in any usual encoding."""
    return b"\0" in data and not data.startswith(_UTF16_MARKS)


def explain_json_error(error: ValueError | RecursionError, line: int = 1) -> tuple[str, str]:
    """Return where and why JSON that starts on line `line` could not be parsed."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {line - 1 + error.lineno}, column {error.colno}", f"bad JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return f"line {line}", "bad JSON: nested too deeply"
    # The only other error is an integer with more digits than Python parses.
    return f"line {line}", "bad JSON: a number has too many digits"
