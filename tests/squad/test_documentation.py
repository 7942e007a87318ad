"""The examples in docs/data-formats.md are read as the page says."""

import re
from pathlib import Path

from loraqa.squad import read_passages, read_predictions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data-formats.md"


def test_the_examples_are_read(tmp_path: Path) -> None:
    examples = re.findall(r"```(json|jsonl|csv)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    paths = []
    for number, (suffix, content) in enumerate(examples):
        paths.append(tmp_path / f"{number}.{suffix}")
        paths[-1].write_text(content, encoding="utf-8")
    *data, predictions = paths
    own, table, *data = data
    assert [question.golds for question in read_passages(own).questions] == [("north",), ()]
    assert [question.golds for question in read_passages(table).questions] == [("north",)]
    questions = [[question.id for question in read_passages(path).questions] for path in data]
    assert questions == [["q1"], ["q1", "q2"], ["q1", "q2"], ["q1"], ["q1"], ["q1", "q2"]]
    assert [read_passages(path).version for path in data[:3]] == ["1.1", "2.0", "2.0"]
    assert read_predictions(predictions) == {"q1": "north", "q2": ""}
