"""Read text files; errors say in one sentence what is wrong."""

import codecs
import json
import sys
from pathlib import Path

from loraqa.errors import InputError

BYTE_ORDER_MARK = "\ufeff"


def read_bytes(path: Path) -> bytes:
    """Return the whole file; raise `InputError` if it cannot be read or is empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name a file in it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); check the path.") from None
    if not data.strip():
        raise InputError(f"{path} is empty; name another file.")
    return data


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


def decode(data: bytes, source: str) -> str:
    """Decode UTF-8, keeping a byte order mark; raise `InputError` if `data` is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError(f"{source} is a binary file, not text; name another file.") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{source} is not UTF-8: line {line} has the byte 0x{data[error.start]:02X} "
            f"(byte {error.start} of the file); save it as UTF-8."
        ) from None


def explain_json_error(error: ValueError | RecursionError, line: int = 1) -> tuple[str, str]:
    """Return where and why JSON that starts on line `line` could not be parsed."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {line - 1 + error.lineno}, column {error.colno}", f"bad JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return f"line {line}", "bad JSON: nested too deeply"
    # The only other error is an integer with more digits than Python parses.
    return f"line {line}", "bad JSON: a number has too many digits"
