"""An outcome is read back as it was written; what is no outcome is refused in a sentence."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.analysis.examples import asked, outcome, some_questions

from loraqa.analysis.outcome import FILE, Gold, Outcome, golds_of
from loraqa.errors import InputError
from loraqa.squad import Answer, Question


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_read_back_as_written(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    written = outcome([asked(text, [text], text, f"x{text}")], [f"x{text}"])
    written.save(folder)
    assert Outcome.load(folder) == written


def test_folder_without_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no evaluation; make one with `loraqa evaluate"):
        Outcome.load(tmp_path)


@pytest.mark.parametrize("part", ["questions", "contexts", "command", "data"])
def test_file_that_lacks_a_part(tmp_path: Path, part: str) -> None:
    outcome(some_questions()).save(tmp_path)
    value = json.loads((tmp_path / FILE).read_text())
    del value[part]
    (tmp_path / FILE).write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"is not what `loraqa evaluate` writes"):
        Outcome.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"questions": [1]}', '{"questions": [{}]}', "3"])
def test_other_json(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=r"is not what `loraqa evaluate` writes"):
        Outcome.load(tmp_path)


def test_golds_with_a_place_come_first() -> None:
    question = Question("q", "Who?", (Answer("Ann", 3), Answer("Ann", 9)), ("Bob", "Ann"))
    assert golds_of(question) == (Gold("Ann", 3), Gold("Ann", 9), Gold("Bob", None))
    assert [gold.end for gold in golds_of(question)] == [6, 12, None]
