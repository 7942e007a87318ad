"""Formats with one question per record: all give the same data, and report problems by place."""

import contextlib
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraqa.errors import InputError
from loraqa.squad import Answer, Passage, QADataset, Question, Version, read_passages

Record = dict[str, Any]
COLUMNS = ["id", "title", "context", "question", "answers"]


def to_jsonl(records: list[Record], path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


def to_csv(records: list[Record], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(record | {"answers": json.dumps(record["answers"])} for record in records)


def to_csv_of_literals(records: list[Record], path: Path) -> None:
    pd.DataFrame(records).to_csv(path)


def to_csv_of_arrays(records: list[Record], path: Path) -> None:
    """Write what `load_dataset(...).to_pandas().to_csv(path)` writes."""
    pa.Table.from_pylist(records).to_pandas().to_csv(path, index=False)


def to_parquet(records: list[Record], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(records), path)


FORMATS: dict[str, tuple[str, Callable[[list[Record], Path], None]]] = {
    "JSON Lines": ("data.jsonl", to_jsonl),
    "JSON Lines by another name": ("data.json", to_jsonl),
    "CSV": ("data.csv", to_csv),
    "CSV by another name": ("data.txt", to_csv),
    "CSV of Python literals": ("data.csv", to_csv_of_literals),
    "CSV of arrays": ("data.csv", to_csv_of_arrays),
    "Parquet": ("data.parquet", to_parquet),
    "Parquet by another name": ("data", to_parquet),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_data(
    tmp_path: Path, document: dict[str, Any], records: list[Record], name: str
) -> None:
    (tmp_path / "official.json").write_text(json.dumps(document), encoding="utf-8")
    official = read_passages(tmp_path / "official.json")
    file, write = FORMATS[name]
    write(records, tmp_path / file)
    data = read_passages(tmp_path / file)
    assert data.passages == official.passages
    assert (data.version, data.order) == (official.version, official.order)
    assert data.fingerprint == official.fingerprint


@pytest.mark.parametrize("name", FORMATS)
def test_separate_records_on_one_context_become_one_passage(
    tmp_path: Path, records: list[Record], name: str
) -> None:
    file, write = FORMATS[name]
    write([records[2], records[0], records[3], records[1]], tmp_path / file)
    data = read_passages(tmp_path / file)
    assert [[q.id for q in p.questions] for p in data.passages] == [["o1", "o2"], ["n1", "n2"]]
    assert data.order == ("o1", "n1", "o2", "n2")


def test_the_version_is_1_1_if_every_record_has_an_answer(
    tmp_path: Path, records: list[Record]
) -> None:
    to_jsonl(records, tmp_path / "all.jsonl")
    to_jsonl(
        [record for record in records if record["answers"]["text"]], tmp_path / "answered.jsonl"
    )
    assert read_passages(tmp_path / "all.jsonl").version == "2.0"
    assert read_passages(tmp_path / "answered.jsonl").version == "1.1"


def test_every_text_field_changes_the_fingerprint(tmp_path: Path, records: list[Record]) -> None:
    prints = set()
    for key in ("id", "title", "question", "context"):
        records[2][key] += "x"
        to_jsonl(records, tmp_path / "data.jsonl")
        prints.add(read_passages(tmp_path / "data.jsonl").fingerprint)
    assert len(prints) == 4


def test_answers_and_version_change_the_fingerprint() -> None:
    def fingerprint(version: Version, *answers: Answer) -> str:
        passages = (Passage("to be or not to be", (Question("q", "What?", answers),)),)
        return QADataset("", version, passages, ("q",)).fingerprint

    answers = [(), (Answer("to", 0),), (Answer("to", 13),), (Answer("be", 3),)]
    answers.append((*answers[1], *answers[2]))
    prints = {fingerprint(version, *each) for version in ("1.1", "2.0") for each in answers}
    assert len(prints) == 10


def test_csv_may_have_one_answer_per_row_in_two_columns(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "id": ["1", "2", "3"],
            "context": ["a b c"] * 3,
            "question": ["Which?", "Who?", "When?"],
            "answer_text": ["b", None, "c"],
            "answer_start": [2, None, 0],
        }
    )
    table.to_csv(tmp_path / "data.csv", index=False)
    assert "2.0" in (tmp_path / "data.csv").read_text()
    data = read_passages(tmp_path / "data.csv")
    assert [q.answers for q in data.questions] == [(Answer("b", 2),), (), (Answer("c", 4),)]
    assert data.repaired == 1


def test_answers_may_be_a_list_of_objects(tmp_path: Path, records: list[Record]) -> None:
    records[0]["answers"] = [{"text": "north", "answer_start": 15}]
    to_jsonl(records[:1], tmp_path / "data.jsonl")
    assert read_passages(tmp_path / "data.jsonl").questions[0].answers == (Answer("north", 15),)


def test_places_are_lines_or_rows_of_the_file(tmp_path: Path, records: list[Record]) -> None:
    """A CSV record with a newline has two lines; JSON Lines may have blank lines."""
    records[2]["question"] = records[3]["question"] = ""
    to_csv(records, tmp_path / "data.csv")
    with pytest.raises(InputError, match=r"(?s)line 6, id 'o1': the q.*line 7, id 'o2': the q"):
        read_passages(tmp_path / "data.csv")
    lines = [json.dumps(record) for record in records]
    (tmp_path / "data.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)line 5, id 'o1': the q.*line 7, id 'o2': the q"):
        read_passages(tmp_path / "data.jsonl")
    to_parquet(records, tmp_path / "data.parquet")
    with pytest.raises(InputError, match=r"(?s)row 2, id 'o1': the q.*row 3, id 'o2': the q"):
        read_passages(tmp_path / "data.parquet")


ANSWERS = {
    "true": (True, "line 1, answers, id 'n1': is true or false, must be a list"),
    "no text": ({"answer_start": [1]}, "line 1, answers, id 'n1': 'text' is missing"),
    "text": (
        {"text": "a", "answer_start": [1, 2]},
        "line 1, answers, id 'n1': 'text' has 1 entries, 'answer_start' 2",
    ),
    "uneven": (
        {"text": ["north"], "answer_start": []},
        "line 1, answers, id 'n1': 'text' has 1 entries, 'answer_start' 0",
    ),
    "float": (
        {"text": ["north"], "answer_start": [15.5]},
        "line 1, answers[0].answer_start, id 'n1': is '15.5', must be a whole number",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_bad_answers_are_reported_or_skipped(
    tmp_path: Path, records: list[Record], case: str
) -> None:
    records[0]["answers"], problem = ANSWERS[case]
    path = tmp_path / "data.jsonl"
    to_jsonl(records, path)
    with pytest.raises(InputError) as caught:
        read_passages(path)
    assert problem in str(caught.value).splitlines()[1]
    data = read_passages(path, on_bad="skip")
    assert data.order == ("n2", "o1", "o2")
    assert data.skipped == {"questions": 1}


def test_bad_json_lines_are_reported_or_skipped(tmp_path: Path, records: list[Record]) -> None:
    path = tmp_path / "data.jsonl"
    to_jsonl(records, path)
    path.write_text('{"id": 1,]\n[]\n' + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)line 1, column 10: bad JSON.*line 2: is a list"):
        read_passages(path)
    data = read_passages(path, on_bad="skip")
    assert data.skipped == {"rows": 2}
    assert len(data.order) == 4


BAD_CSV = {
    "quote": ('n2,t,"c"c,q,{}', "bad CSV"),
    "open quote": ('n2,t,"c', "bad CSV"),
    "too few": ("n2,t,c", "has 3 fields, the first row has 5"),
    "no literal": ("n2,t,c,q,{'text': open('x')}", "neither JSON nor Python literals"),
    "a set": ("n2,t,c,q,{'c'}", "must be a list"),
    "no offset": ("""n2,t,c,q,"{'text': ['c'], 'answer_start': [...]}\"""", "must be a whole"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_records_are_reported_or_skipped(
    tmp_path: Path, records: list[Record], case: str
) -> None:
    record, problem = BAD_CSV[case]
    path = tmp_path / "data.csv"
    to_csv(records[2:], path)
    with path.open("a", encoding="utf-8") as file:
        file.write(record)
    with pytest.raises(InputError, match=rf"line 4.*{problem}"):
        read_passages(path)
    assert read_passages(path, on_bad="skip").order == ("o1", "o2")


def test_a_csv_field_may_be_long(tmp_path: Path, records: list[Record]) -> None:
    records[0]["context"] += "and so on " * 20_000
    to_csv(records[:1], tmp_path / "data.csv")
    before = csv.field_size_limit(1000)
    try:
        assert read_passages(tmp_path / "data.csv").passages[0].context == records[0]["context"]
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


PLACES = {
    "no offset": ({"answer": "Oslo"}, "answer_start", "has no offset"),
    "wrong offset": ({"answer": "Oslo", "answer_start": 3}, "answer_start", "is not at character"),
    "not there": ({"answer_text": "Rome"}, "answer_text", "is not in the context"),
    "lists": (
        {"answer": ["north", "Oslo"], "answer_start": [15, 3]}, "answer_start[1]", "is not at"
    ),
    "nested": (
        {"answers": {"text": ["Oslo"], "answer_start": [3]}}, "answers[0].answer_start", "is not at"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_an_answer_without_a_place_is_named_by_its_column(
    tmp_path: Path, suffix: str, case: str
) -> None:
    answers, place, problem = PLACES[case]
    record = {"id": "n1", "context": "Oslo lies near north Oslo.", "question": "Where?", **answers}
    path = tmp_path / f"data.{suffix}"
    frame = pd.DataFrame([record])
    if suffix == "jsonl":
        to_jsonl([record], path)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if suffix == "tsv" else ",", index=False)
    row = {"jsonl": "line 1", "parquet": "row 0"}.get(suffix, "line 2")
    (unplaced,) = read_passages(path).unplaced
    assert str(unplaced).startswith(f"{row}, {place}, id 'n1': the answer ")
    assert problem in str(unplaced)


def test_a_missing_column_is_reported(tmp_path: Path, records: list[Record]) -> None:
    for record in records:
        record["reply"] = record.pop("answers")
    pd.DataFrame(records).to_csv(tmp_path / "data.csv", index=False)
    to_parquet(records, tmp_path / "data.parquet")
    for file in ("data.csv", "data.parquet"):
        with pytest.raises(InputError, match=r"no column 'answers'.* but this one has .*'reply'"):
            read_passages(tmp_path / file)


def test_broken_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text('"id"x,context\n')
    with pytest.raises(InputError, match="line 1: bad CSV"):
        read_passages(tmp_path / "data.csv")
    (tmp_path / "data.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_passages(tmp_path / "data.parquet")


cells = st.text(st.sampled_from("ab'\"\\\n,{}[]()é🙂\u2028"), min_size=1, max_size=20)


@given(context=cells.filter(str.strip), question=cells.filter(str.strip))
def test_quotes_and_newlines_survive_every_format(
    tmp_path_factory: pytest.TempPathFactory, context: str, question: str
) -> None:
    answers = {"text": [context, context], "answer_start": [0, 0]}
    record = {"id": "1", "title": "", "context": context, "question": question, "answers": answers}
    folder = tmp_path_factory.mktemp("formats")
    for file, write in FORMATS.values():
        write([record], folder / file)
        (passage,) = read_passages(folder / file).passages
        assert passage.context == context
        assert passage.questions[0].text == question
        assert passage.questions[0].answers == (Answer(context, 0),) * 2


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(draw=st.data(), name=st.sampled_from(sorted(FORMATS)), junk=st.binary(max_size=8))
def test_arbitrary_bytes_are_read_or_refused(
    tmp_path: Path, records: list[Record], draw: Any, name: str, junk: bytes
) -> None:
    file, write = FORMATS[name]
    path = tmp_path / file
    write(records, path)
    content = path.read_bytes()
    start = draw.draw(st.integers(0, len(content)))
    end = draw.draw(st.integers(start, min(start + 16, len(content))))
    path.write_bytes(content[:start] + junk + content[end:])
    with contextlib.suppress(InputError):
        read_passages(path)


def test_a_damaged_arrow_file_is_refused(tmp_path: Path) -> None:
    """Following an offset that points out of the file would end the process."""
    path = tmp_path / "data.arrow"
    table = pa.table({name: ["Oslo lies by the sea."] for name in ("context", "question")})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    offsets = np.array([0, 21], np.int32).tobytes()
    damaged = path.read_bytes().replace(offsets, np.array([0, 2**31 - 1], np.int32).tobytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="is not a readable Arrow file"):
        read_passages(path)
