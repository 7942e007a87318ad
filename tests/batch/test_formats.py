"""Tables as people write them: read as `evaluate` reads them, and written in the same format."""

import csv
import json
import pickle
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batch.conftest import CONTEXTS, FORMATS, read_csv, write_lines

from loraqa.batch.open import check_same_format, open_source
from loraqa.batch.plan import Asked, asked_by, chunks, make_plan
from loraqa.batch.source import Reply, skipped
from loraqa.documents import Document
from loraqa.errors import InputError
from loraqa.squad import read_passages
from loraqa.squad.checks import Checks

MILL = Document("The mill is old.")
REPLY = Reply('Ruth; "Olen"\n', 1, 2, 0.5, 0.25, None)
SKIPPED = skipped("The question is empty.")
ADDED = ["answer", "start", "end", "confidence", "probability", "problem"]
CELLS_OF_REPLY = [REPLY.answer, "1", "2", "0.5", "0.25", ""]


def records(path: Path, rows: int = 3) -> list[Any]:
    source = open_source(path)
    plan = make_plan(source, rows, "skip")
    return [record for _, chunk in chunks(source, plan.parts) for record in chunk]


def asked(path: Path) -> list[tuple[str, str] | None]:
    return [asked_by(record, Checks()) for record in records(path)]


def rewritten(path: Path, replies: list[Reply]) -> Path:
    """Write the file again with these answers."""
    out = path.with_name(f"out{path.suffix}")
    with open_source(path).writing(out) as writer:
        writer.write([record.raw for record in records(path)], replies)
    return out


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('",;\n\t|'))


@given(
    table=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8),
    delimiter=st.sampled_from(",;\t|"),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_csv_is_read_as_the_csv_module_reads_it_and_keeps_its_cells(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[tuple[str, str, str]],
    delimiter: str,
    line_end: str,
) -> None:
    path = tmp_path_factory.mktemp("csv") / "in.csv"
    # Cells of text; parts are small, so that they begin everywhere.
    table = [(f"c{a}c", f"q{b}q", f"n{c}n") for a, b, c in table]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
        writer.writerows([("context", "question", "note"), *table])
    assert asked(path) == [row[:2] for row in table]
    out = rewritten(path, [REPLY] * len(table))
    with out.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, delimiter=delimiter)
    assert header == ["context", "question", "note", *ADDED]
    assert rows == [[*row, *CELLS_OF_REPLY] for row in table]
    assert out.read_bytes().split(b"\n")[0].endswith(b"\r") == (line_end == "\r\n")


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_carriage_return_in_a_cell_is_kept(line_end: str, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    row = ["A\rking.", "Who?", "\r"]
    text = f'context,question,note{line_end}"{row[0]}",{row[1]},"{row[2]}"{line_end}'
    path.write_text(text, newline="")
    reply = Reply("A\rking", 0, 6, None, 0.25, None)
    with rewritten(path, [reply]).open(newline="") as file:
        _, given = csv.reader(file)
    assert given == [*row, reply.answer, "0", "6", "", "0.25", ""]


UNUSUAL = {
    "a byte order mark": "\ufeffcontext,question,answers\nA king.,Who?,king\n",
    "semicolons": "question;context;answers\nWho?;A king.;king\n",
    "a line for Excel": "sep=;\r\nquestion;context;answers\r\nWho?;A king.;king\r\n",
    "blank rows": "\n,,\ncontext,question,answers\n\nA king.,Who?,king\n , \n",
    "blanks around quotes": 'context, "question" ,answers\n "A king." , "Who?",king\n',
    "capitals and blanks in names": " Context ,QUESTION,answers\nA king.,Who?,king\n",
    "no line end": "context,question,answers\nA king.,Who?,king",
    "empty cells at the end": "context,question,answers\nA king.,Who?,king,,\n",
    "columns without a name": "context,question,answers,,\nA king.,Who?,king,,\n",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_csv_is_read_as_data_to_score_on_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(UNUSUAL[name], newline="", encoding="utf-8")
    (passage,) = read_passages(path).passages
    assert asked(path) == [(passage.context, passage.questions[0].text)]

    out = rewritten(path, [REPLY]).read_bytes().decode()
    assert out.startswith("\ufeff") == UNUSUAL[name].startswith("\ufeff")
    assert out.startswith("sep=;\r\n") == UNUSUAL[name].startswith("sep=")
    delimiter = ";" if ";" in UNUSUAL[name] else ","
    *_, last = csv.reader(out.splitlines(keepends=True), delimiter=delimiter)
    assert {"A king.", "Who?"} <= set(last)
    assert last[-6:] == CELLS_OF_REPLY


def test_bad_rows_stop_or_keep_their_place(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(
        "id,context,question\n"
        "1,A king.,Who?\n"
        "2,,Where?\n"
        "3,A king.\n"
        '4,"A "king",Who?\n'
        "5,A king., \n"
        "6,A queen.,Who?\n"
    )
    with pytest.raises(InputError) as stopped:
        make_plan(open_source(path))
    message = str(stopped.value)
    assert f"{path} has 4 problems:" in message
    assert "line 3, id '2': the context is empty" in message
    assert "line 4: has 2 fields, the first row has 3" in message
    assert "line 5: bad CSV" in message
    assert "line 6, id '5': the question is empty" in message
    assert "--on-bad skip" in message

    plan = make_plan(open_source(path), on_bad="skip")
    assert (plan.rows, plan.skipped, plan.left_out) == (4, 2, 2)
    king, queen = ("A king.", "Who?"), ("A queen.", "Who?")
    assert asked(path) == [king, None, None, queen]
    out = rewritten(path, [REPLY, SKIPPED, SKIPPED, REPLY])
    assert [(row["id"], row["start"]) for row in read_csv(out)] == [
        ("1", "1"),
        ("2", ""),
        ("5", ""),
        ("6", "1"),
    ]


def test_more_problems_than_a_message_lists_are_counted_but_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("context,question\nA king.,Who?\n" + "A king.,\n" * 500)
    with pytest.raises(InputError, match="has 500 problems") as stopped:
        make_plan(open_source(path))
    assert "and 480 more" in str(stopped.value)


def test_json_lines_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [
        '{"context": "A king.", "question": "Who?", "x": 1.50, "y": "\\u00e9"}',
        '{"question":"Who?","context":"A queen.","z":{"a":[null]}} ',
    ]
    path.write_text("\n\n".join(lines) + "\n")
    out = rewritten(path, [REPLY, SKIPPED])
    first, second = out.read_text().splitlines()
    assert first.startswith(lines[0][:-1] + ', "answer"')
    assert json.loads(first)["answer"] == REPLY.answer
    assert second.startswith(lines[1].rstrip()[:-1] + ', "answer": null')
    assert list(json.loads(second).values())[-6:] == [None] * 5 + ["The question is empty."]


def test_a_line_without_keys_gets_those_that_are_added(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"context": "A king.", "question": "Who?"}\n { } \n')
    _, last = rewritten(path, [REPLY, SKIPPED]).read_text().splitlines()
    assert json.loads(last) == dict.fromkeys(ADDED) | {"problem": "The question is empty."}


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"context": "A king.", "question": "Who?"}\n{"context"\n[1]\n{"question": 1}\n'
    )
    with pytest.raises(InputError) as stopped:
        make_plan(open_source(path))
    message = str(stopped.value)
    assert "line 2, column 11: bad JSON" in message
    assert "line 3: is a list, must be an object" in message
    assert "line 4: 'context' is missing" in message
    assert "line 4, question: is a whole number, must be text" in message


def test_parquet_keeps_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    table = pyarrow.table(
        {
            "context": pyarrow.array(["A king."] * 7).dictionary_encode(),
            "question": pyarrow.array(["Who?"] * 6 + [None]),
            "price": pyarrow.array([Decimal("1.50")] * 7),
            "tags": pyarrow.array([["a", None]] * 7),
        }
    ).replace_schema_metadata({"made": "here"})
    pyarrow.parquet.write_table(table, path, row_group_size=3)
    assert asked(path) == [("A king.", "Who?")] * 6 + [None]
    out = pyarrow.parquet.read_table(rewritten(path, [REPLY] * 6 + [SKIPPED]))
    assert out.select(table.column_names).equals(pyarrow.parquet.read_table(path))
    assert out.schema.metadata[b"made"] == b"here"
    assert [str(out.schema.field(name).type) for name in REPLY._fields] == [
        *("string", "int64", "int64", "double", "double", "string")
    ]
    assert out["start"].to_pylist() == [1] * 6 + [None]


def test_a_row_group_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    rows, drawn = 20000, Random(0)
    contexts = [drawn.randbytes(500).hex() for _ in range(rows)]
    table = pyarrow.table({"context": contexts, "question": ["Who?"] * rows})
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    del table, contexts
    source = open_source(path)
    before = pyarrow.total_allocated_bytes()
    held = [pyarrow.total_allocated_bytes() - before for _ in source.records((0, 0), Checks())]
    assert len(held) == rows
    assert path.stat().st_size > 16 * 2**20
    assert max(held) < 8 * 2**20


@pytest.mark.parametrize("ending", FORMATS)
def test_records_are_read_from_any_place(ending: str, tmp_path: Path) -> None:
    write, _ = FORMATS[ending]
    rows = [{"context": f"c{n}\nä", "question": f"q{n}"} for n in range(150)]
    source = open_source(write(tmp_path / f"in.{ending}", rows))
    plan = make_plan(source, 7)
    assert len(plan.parts) == 22
    for part, chunk in reversed([(p, c) for p in plan.parts for _, c in chunks(source, [p])]):
        assert [asked_by(record, Checks()) for record in chunk] == [
            (row["context"], row["question"]) for row in rows[part.first : part.first + part.rows]
        ]


REFUSED = {
    "in.csv": [
        (b"", "in.csv is empty"),
        (b"\n \n", "in.csv is empty"),
        (b"context;answer\nA king.;king\n", "has no column 'question'"),
        (b"a,b\n1,2\n", "has no column 'context' or 'question'"),
        (b"question\nWho?\n", "(or question alone, with --context-file)"),
        (b"context,question,answer\nA king.,Who?,king\n", "has a column 'answer' already"),
        (b"context,question\n", "has no usable questions"),
        (b"context,question\n\xff,Who?\n", "line 2 has the byte 0xFF (byte 17 of the file)"),
        (b"context,question\nA\0,Who?\n", "has a control character"),
        (b"\x1f\x8b\x08", "is compressed"),
    ],
    "in.jsonl": [
        (b"[1]\n", "is neither CSV, JSON Lines nor Parquet"),
        (b'{"context": "A", "question": "B", "end": 1}\n', "line 1: has a column 'end' already"),
        (b'{"question": "B"}\n', "has no contexts; add a column context, or name the text"),
    ],
    "in.parquet": [(b"PAR1 and no more", "is not a readable Parquet file")],
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [(name, *each) for name, some in REFUSED.items() for each in some],
)
def test_what_cannot_be_answered_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        make_plan(open_source(path))
    assert message in str(refused.value)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_prefix_keeps_columns_apart(ending: str, tmp_path: Path) -> None:
    write, read = FORMATS[ending]
    row = {"context": "A king.", "question": "Who?", "answer": "gold", "problem": "none"}
    path = write(tmp_path / f"in.{ending}", [row])
    with pytest.raises(InputError, match=r"has a column 'answer' already, .* \(--prefix\)"):
        make_plan(open_source(path))
    source = open_source(path, "model_")
    with source.writing(tmp_path / f"out.{ending}") as writer:
        writer.write([each.raw for each in source.records(source.start, Checks())], [REPLY])
    (given,) = read(tmp_path / f"out.{ending}")
    assert list(given) == [*row, *(f"model_{name}" for name in ADDED)]
    assert {name: given[name] for name in row} == row
    assert given["model_answer"] == REPLY.answer
    with pytest.raises(InputError, match="has a column 'model_end' already"):
        make_plan(open_source(write(path, [{**row, "model_end": "1"}]), "model_"))


def test_a_missing_quotation_mark_does_not_fill_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraqa.batch.lines.LARGEST_RECORD", 1000)
    path = tmp_path / "in.csv"
    path.write_text('context,question\nA king.,"Who?\n' + f"{CONTEXTS[0]},Who?\n" * 100)
    with pytest.raises(InputError, match=r"begins on line 2 has more than 1,000 bytes"):
        make_plan(open_source(path))


def test_the_output_has_the_inputs_format(tmp_path: Path) -> None:
    source = open_source(write_lines(tmp_path / "in.jsonl", [{"context": "A", "question": "B"}]))
    for name in ("out.jsonl", "out.json", "out", "out.txt"):
        check_same_format(source, tmp_path / name)
    for name in ("out.csv", "out.PARQUET", "out.jsonl.gz"):
        with pytest.raises(InputError, match=r"give it a name that ends with .jsonl"):
            check_same_format(source, tmp_path / name)


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    rows = [{"context": "A king.", "question": f"Who {n}?"} for n in range(9)]
    source = open_source(write_lines(tmp_path / "in.jsonl", rows))
    plan = make_plan(source, 2)
    write_lines(tmp_path / "in.jsonl", rows[:-1])
    with pytest.raises(InputError, match="has changed while it was read"):
        list(chunks(source, plan.parts))


@pytest.mark.parametrize("ending", FORMATS)
def test_a_table_about_one_text_has_no_contexts(ending: str, tmp_path: Path) -> None:
    write, _ = FORMATS[ending]
    path = write(tmp_path / f"in.{ending}", [{"context": "A king.", "question": "Who?"}])
    with pytest.raises(InputError, match="has a context of its own; leave out --context-file"):
        make_plan(open_source(path, document=MILL))
    write(path, [{"id": "q1"}])
    with pytest.raises(InputError, match="question"):
        make_plan(open_source(path, document=MILL))
    write(path, [{"question": "How old?"}])
    # Readers on other machines are sent the table as a pickle, and not the text's file.
    source = pickle.loads(pickle.dumps(open_source(path, document=MILL)))
    asked = [asked_by(record, Checks()) for record in source.records(source.start, Checks())]
    assert asked == [Asked("The mill is old.", "How old?")]


@pytest.mark.parametrize("ending", FORMATS)
def test_answers_in_a_document_with_pages_name_them(ending: str, tmp_path: Path) -> None:
    write, read = FORMATS[ending]
    path = write(tmp_path / f"in.{ending}", [{"question": f"Who {n}?"} for n in range(4)])
    book = Document.of_pages(["A king.", "A queen.", "A page."])
    source = pickle.loads(pickle.dumps(open_source(path, "its_", book)))
    starts = [book.text.index(word) for word in ("king", "queen", "page")]
    replies = [REPLY._replace(start=start) for start in starts]
    with source.writing(tmp_path / f"out.{ending}") as writer:
        raws = [each.raw for each in source.records(source.start, Checks())]
        writer.write(raws, [*replies, REPLY._replace(start=None)])
    rows = read(tmp_path / f"out.{ending}")
    assert list(rows[0]) == ["question", *(f"its_{name}" for name in ADDED), "its_page"]
    none = "" if ending == "csv" else None
    assert [row["its_page"] for row in rows] == [
        *(["1", "2", "3"] if none == "" else [1, 2, 3]),
        none,
    ]
    # A document without pages has no such column, and a table that has it keeps it.
    write(path, [{"question": "Who?", "page": "7"}])
    open_source(path, document=MILL)
    with pytest.raises(InputError, match="has a column 'page' already"):
        make_plan(open_source(path, document=book))
