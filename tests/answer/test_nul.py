"""NUL is refused in what is asked, as in data; other control characters are kept."""

import pytest

from loraqa.answer.reader import check_asked
from loraqa.errors import InputError


def test_nul_alone_is_refused_among_control_characters() -> None:
    check_asked("Page one.\x0cPage two.\x0b\x85", ["Who\x1f?"])
    with pytest.raises(InputError, match="context holds a NUL character .* at 4"):
        check_asked("Page\0one", ["Who?"])
    with pytest.raises(InputError, match="question holds a NUL character .* at 3"):
        check_asked("Page one", ["Who\0?"])
