"""Tables in memory, and JSON with one list per column."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from loraqa.errors import InputError
from loraqa.squad import Answer, read_passages

ROWS = [
    {"id": "a", "context": "By Ada Byron.", "question": "Who?", "answer": "Ada"},
    {"id": "b", "context": "By Ada Byron.", "question": "Why?", "answer": None},
]
FRAME = pd.DataFrame(ROWS)
TABLES: dict[str, Any] = {
    "rows": ROWS,
    "columns": {name: list(FRAME[name]) for name in FRAME},
    "frame": FRAME,
    "frame of nullable types": FRAME.convert_dtypes(),
    "data set": datasets.Dataset.from_list(ROWS),
    "Arrow": pa.Table.from_pylist(ROWS),
}
FILES: dict[str, Callable[[Path], object]] = {
    "lists": lambda path: path.write_text(json.dumps(FRAME.to_dict("list"))),
    "numbered cells": FRAME.to_json,
    "table": lambda path: FRAME.to_json(path, orient="table"),
    "data set": lambda path: datasets.Dataset.from_list(ROWS).to_json(path),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_memory_are_read(name: str) -> None:
    first, second = read_passages(TABLES[name]).questions
    assert (first.id, first.answers, second.id, second.golds) == ("a", (Answer("Ada", 3),), "b", ())


@pytest.mark.parametrize("name", FILES)
def test_tables_in_json_are_read(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / "data.json")
    first, second = read_passages(tmp_path / "data.json").questions
    assert (first.id, first.answers, second.id, second.golds) == ("a", (Answer("Ada", 3),), "b", ())


def test_columns_of_other_lengths_are_no_table(tmp_path: Path) -> None:
    columns = TABLES["columns"] | {"question": ["Who?"]}
    with pytest.raises(InputError, match="can be read"):
        read_passages(columns)
    (tmp_path / "data.json").write_text(json.dumps(columns))
    with pytest.raises(InputError, match="context: is a list, must be text"):
        read_passages(tmp_path / "data.json")


@pytest.mark.parametrize(
    "other", [datasets.DatasetDict(train=TABLES["data set"]), 7, None, ROWS[0]]
)
def test_other_objects_are_refused(other: Any) -> None:
    with pytest.raises(InputError, match="an Arrow table or one split of a data set can be"):
        read_passages(other)


def test_a_literal_that_stands_in_the_context_is_text() -> None:
    row = {"context": """`sorted` gives ["a", "b"].""", "question": "What?"}
    (question,) = read_passages([row | {"answer": """["a", "b"]"""}]).questions
    assert question.answers == (Answer("""["a", "b"]""", 15),)
