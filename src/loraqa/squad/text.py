"""Text files as bytes, UTF-8 and JSON; what is wrong with one is said in a sentence."""

import json
import sys
from pathlib import Path

from loraqa.errors import InputError

BYTE_ORDER_MARK = "\ufeff"


def read_bytes(path: Path) -> bytes:
    """The whole file; raise `InputError` where it cannot be read or is empty."""
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
    """A text as it stands, in a file or, where `path` is -, on standard input.

    Line ends are kept, so that offsets are those of the file; a byte order mark is no part of the
    text. Raises `InputError` as `read_bytes` and `decode` do.
    """
    if str(path) == "-":
        text = decode(sys.stdin.buffer.read(), "standard input")
    else:
        text = decode(read_bytes(path), str(path))
    return text.removeprefix(BYTE_ORDER_MARK)


def decode(data: bytes, source: str) -> str:
    """The bytes as UTF-8, with a byte order mark if there is one; raise `InputError` otherwise."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{source} is not UTF-8: line {line} has the byte 0x{data[error.start]:02X} "
            f"(byte {error.start} of the file); save it as UTF-8."
        ) from None


def explain_json_error(error: ValueError | RecursionError, line: int = 1) -> tuple[str, str]:
    """Where and why JSON that starts on `line` could not be parsed."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {line - 1 + error.lineno}, column {error.colno}", f"bad JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return f"line {line}", "bad JSON: nested too deeply"
    # The one other error: an integer of more digits than Python reads.
    return f"line {line}", "bad JSON: a number has too many digits"
