"""Loading a reader as the user's options say."""

from typing import TYPE_CHECKING

from loraqa.notices import status_line

if TYPE_CHECKING:
    from loraqa.reader import Reader
    from loraqa.reader_options import ReaderOptions


def load_reader(options: "ReaderOptions") -> "Reader":
    """Load a reader, and say so meanwhile."""
    with status_line(f"Loading {options.run} …"):
        return options.load()
