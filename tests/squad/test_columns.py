"""The names of columns: only their letters count, and what is missing is said in fitting words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pandas as pd
import pytest
from tests.squad.test_exports import BARE, ROW, Row, as_csv, as_lines, as_parquet, each_form

from loraqa.errors import InputError
from loraqa.squad import Answer, QADataset, read_passages

Form = Callable[[list[Row], Path], Any]
RENAMED = [
    {"ID": "r", "Context": BARE["context"], "QUESTION": BARE["question"], " answer ": "Byron"},
    {
        "Id": "r",
        "CONTEXT ": BARE["context"],
        "Question": BARE["question"],
        "answerText": "Byron",
        "Answer Start": 4,
        "isImpossible": False,
    },
    BARE | {"id": "r", "answers.text": ["Byron"], "answers.answer_start": [4]},
]


def expect(data: QADataset) -> None:
    assert [(q.id, q.text, q.answers) for q in data.questions] == [
        ("r", BARE["question"], (Answer("Byron", 4),))
    ]


@each_form
@pytest.mark.parametrize("row", RENAMED)
def test_only_the_letters_of_a_column_count(tmp_path: Path, form: Form, row: Row) -> None:
    expect(read_passages(form([row], tmp_path)))


@pytest.mark.parametrize("row", RENAMED)
def test_so_they_do_on_the_hub_and_in_a_single_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row])
    )
    expect(read_passages("owner/name"))
    path = tmp_path / "row.json"
    path.write_text(json.dumps(row))
    expect(read_passages(path))
    path.write_text("\n".join(map(json.dumps, [row, BARE | {"id": "s", "answer": ""}])))
    assert read_passages(path).order == ("r", "s")


@each_form
def test_a_column_of_another_case_still_forbids_answers(tmp_path: Path, form: Form) -> None:
    with pytest.raises(InputError, match="is_impossible is true, but"):
        read_passages(form([ROW | {"Is_Impossible": True}], tmp_path))


@each_form
def test_the_standard_name_wins_and_others_must_be_unique(tmp_path: Path, form: Form) -> None:
    row = BARE | {"id": "r", "answer": "Byron"}
    expect(read_passages(form([row | {"ID": "x", "Answer": "wax"}], tmp_path)))
    del row["answer"]
    with pytest.raises(InputError, match="the columns 'Answer' and 'ANSWER' both mean 'answer'"):
        read_passages(form([row | {"Answer": "wax", "ANSWER": "bees"}], tmp_path))


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("context,question,answer,answer\nBy Ada.,Who?,Ada,By Ada\n")
    frame = pd.read_csv(path, header=None, skiprows=1, names=[0, 1, 2, 3])
    frame.columns = pd.Index(["context", "question", "answer", "answer"])
    for source in (path, frame):
        with pytest.raises(InputError, match="the columns 'answer' and 'answer' both mean"):
            read_passages(source)


@pytest.mark.parametrize("form", [pd.DataFrame, list, as_parquet, as_csv, as_lines])
def test_a_missing_column_is_explained_in_words_that_fit(tmp_path: Path, form: Any) -> None:
    rows = [BARE | {"reply": "Byron"}]
    source = form(rows) if form in (pd.DataFrame, list) else form(rows, tmp_path)
    with pytest.raises(InputError) as caught:
        read_passages(source)
    message = str(caught.value)
    assert ("commas" in message) == (form is as_csv)
    assert "'answers'" in message
    assert form is as_lines or "'context', 'question', 'reply'" in message
