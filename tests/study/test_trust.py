"""The study of trust: articles made of paragraphs, questions on wrong contexts, and the figures."""

import subprocess
import sys
from pathlib import Path

import pytest
from study.trust import _coverage, _on_wrong_contexts, joined
from tests.answer.conftest import PASSAGES

from loraqa.squad import QADataset, Question, normalize_answer, write_official

TITLED = QADataset.from_passages(
    [type(p)(p.context, p.questions, title) for p, title in zip(PASSAGES, "aab", strict=True)],
    "1.1",
)


def test_articles_hold_all_paragraphs_and_the_places_of_answers() -> None:
    asked = frozenset(TITLED.order) - {"a2"}
    whole = joined(TITLED, asked)
    assert [passage.title for passage in whole.passages] == ["a", "b"]
    assert set(whole.order) == asked
    for passage in whole.passages:
        for question in passage.questions:
            for answer in question.answers:
                assert passage.context[answer.start : answer.end] == answer.text
    assert PASSAGES[1].context in whole.passages[0].context
    assert [p.title for p in joined(TITLED, frozenset(["c1"])).passages] == ["b"]


def test_wrong_contexts_lack_the_answers() -> None:
    wrong = _on_wrong_contexts(TITLED, frozenset(TITLED.order))
    some = _on_wrong_contexts(TITLED, frozenset(["a1"]))
    assert some.order == ("a1 elsewhere",)
    golds = {q.id: q.golds for q in TITLED.questions}
    assert wrong.version == "2.0"
    assert len(wrong.order) >= 4
    for passage in wrong.passages:
        for question in passage.questions:
            assert isinstance(question, Question)
            assert not question.answerable
            for gold in golds[question.id.removesuffix(" elsewhere")]:
                assert normalize_answer(gold) not in normalize_answer(passage.context)


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ([1, 1, 1, 1, 0], 1.0),
        ([1, 1, 0, 0, 0], 0.4),
        ([0, 0, 0, 0, 0], 0.0),
        ([1, 0, 1, 1, 1], 1.0),
    ],
)
def test_coverage_is_the_largest_share_that_is_right_enough(
    right: list[float], expected: float
) -> None:
    values = [0.9, 0.8, 0.7, 0.6, 0.5]
    assert _coverage(values, right) == pytest.approx(expected)


def test_a_model_that_is_not_calibrated_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    write_official(tmp_path / "dev.json", TITLED.passages, "1.1")
    command = [sys.executable, "-m", "study.trust", str(tiny_folder)]
    command += ["--dev", str(tmp_path / "dev.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not calibrated; train it with data.held_out." in done.stderr
