"""`loraqa.json` comes back as it was written, and a broken one is refused."""

from pathlib import Path

import pytest
from tests.adapter.conftest import INFO

from loraqa.adapter.info import read_adapter_info, write_adapter_info
from loraqa.errors import InputError


def test_the_info_comes_back(tmp_path: Path) -> None:
    write_adapter_info(tmp_path, INFO)
    assert read_adapter_info(tmp_path) == INFO


@pytest.mark.parametrize("text", ["{}", "[]", '{"base": {}}', "{"])
def test_a_broken_info_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "loraqa.json").write_text(text)
    with pytest.raises(InputError, match=r"loraqa\.json"):
        read_adapter_info(tmp_path)


def test_a_folder_without_info_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loraqa\.json does not exist"):
        read_adapter_info(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ({"sha256": "ab"}, {"sha256": "ab"}, False),
        ({"sha256": "ab"}, {"sha256": "cd"}, True),
        ({"sha256": "ab"}, {"revision": "12"}, False),
        ({"revision": "12"}, {"revision": "34"}, True),
        ({"revision": "12"}, {"revision": "12"}, False),
        ({"revision": "12", "sha256": "ab"}, {"revision": "34", "sha256": "ab"}, False),
        ({}, {"sha256": "ab", "revision": "12"}, False),
    ],
)
def test_bases_differ_in_what_is_known_of_both(
    one: dict[str, str], other: dict[str, str], differ: bool
) -> None:
    unknown = INFO.base.model_copy(update={"sha256": None})
    first, second = (unknown.model_copy(update=known) for known in (one, other))
    assert first.differs_from(second) == second.differs_from(first) == differ
