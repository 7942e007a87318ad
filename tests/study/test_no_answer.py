"""Training data with unanswerable questions, out of a v1.1 file and half of a v2.0 file."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import town_passages

from loraqa.squad import Passage, Question, read_passages, write_official


def test_no_article_is_in_both_halves(tmp_path: Path) -> None:
    unanswerable = [
        Passage(f"{title} {n}.", (Question(f"{title}{n}", "What?"),), title)
        for title in "abc"
        for n in range(2)
    ]
    write_official(tmp_path / "v2.json", unanswerable, "2.0")
    write_official(tmp_path / "v1.json", town_passages(5), "1.1")
    command = [sys.executable, "-m", "study.no_answer", tmp_path / "v1.json", tmp_path / "v2.json"]
    command += ["--questions", "4", "--out", tmp_path / "out"]
    subprocess.run(command, check=True)
    train, dev = (read_passages(tmp_path / "out" / f"{name}.json") for name in ("train", "dev"))
    assert (train.version, dev.version) == ("2.0", "2.0")
    assert dev.order == ("b0", "b1")
    assert [id for id in train.order if id[0] == "c"] == ["c0", "c1"]
    answerable = [question for question in train.questions if question.answerable]
    assert (len(answerable), len(train.questions)) == (4, 8)
