"""Lines of running text, as models were trained on."""

import re
from collections.abc import Iterable

# Control characters that are no white space, and characters that nobody sees: soft hyphens, marks
# of width zero, halves of characters, and what is no character.
_UNSEEN = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ud800-\udfff\ufffe\uffff]"
)
_BLANK_LINES = re.compile("\n{3,}")


def joined(lines: Iterable[str]) -> str:
    """Return the lines without unseen characters and blanks beside other blanks.

    Blank lines, which set paragraphs apart, become one. There is none at the start and the end.
    """
    tidied = (" ".join(_UNSEEN.sub("", line).split()) for line in lines)
    return _BLANK_LINES.sub("\n\n", "\n".join(tidied)).strip("\n")
