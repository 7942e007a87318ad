"""What exports and own data look like: each kind is read as the same question, in every format."""

import csv
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loraqa.errors import InputError
from loraqa.squad import Answer, QADataset, check_ids, read_passages, write_official

Row = dict[str, Any]
CONTEXT = "Ada Byron kept bees near Turin; she sold honey, and she sold wax."
ROW: Row = {
    "id": "r",
    "context": CONTEXT,
    "question": "Who kept bees?",
    "answers": {"text": ["Ada Byron"], "answer_start": [0]},
}
BARE = {"context": CONTEXT, "question": "Who kept bees?"}


def as_lines(rows: list[Row], folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def as_list(rows: list[Row], folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1), "utf-8-sig")
    return path


def as_data(rows: list[Row], folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps({"version": "0.1.0", "data": rows}), "utf-8")
    return path


def as_gzip(rows: list[Row], folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(as_lines(rows, folder).read_bytes()))
    return path


def as_csv(rows: list[Row], folder: Path, delimiter: str = ",") -> Path:
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(
            {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            for row in rows
        )
    return path


def as_semicolons(rows: list[Row], folder: Path) -> Path:
    return as_csv(rows, folder, ";")


def as_tabs(rows: list[Row], folder: Path) -> Path:
    return as_csv(rows, folder, "\t")


def as_parquet(rows: list[Row], folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_arrow_file(rows: list[Row], folder: Path) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "rows.arrow"


def as_saved(rows: list[Row], folder: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def as_frame(rows: list[Row], _: Path) -> pd.DataFrame:
    return pd.DataFrame(rows)


def as_arrays(rows: list[Row], _: Path) -> pd.DataFrame:
    """As pandas reads a Parquet file: lists are NumPy arrays."""
    return pa.Table.from_pylist(rows).to_pandas()


def as_rows(rows: list[Row], _: Path) -> list[Row]:
    return rows


FORMS: list[Callable[[list[Row], Path], Any]] = [
    as_lines,
    as_list,
    as_data,
    as_gzip,
    as_csv,
    as_semicolons,
    as_tabs,
    as_parquet,
    as_arrow_file,
    as_saved,
    as_frame,
    as_arrays,
    as_rows,
]
each_form = pytest.mark.parametrize("form", FORMS)

# Rows that mean the question of ROW.
SAME: dict[str, Row] = {
    "hub": ROW,
    "integer id": ROW | {"id": 7},
    "scalars": ROW | {"answers": {"text": "Ada Byron", "answer_start": 0}},
    "a text and a list": ROW | {"answers": {"text": "Ada Byron", "answer_start": [0]}},
    "a list and an offset": ROW | {"answers": {"text": ["Ada Byron"], "answer_start": 0}},
    "list of objects": ROW | {"answers": [{"text": "Ada Byron", "answer_start": 0}]},
    "list of texts": ROW | {"answers": ["Ada Byron"]},
    "text": ROW | {"answers": "Ada Byron"},
    "two columns": BARE | {"id": "r", "answer_text": "Ada Byron", "answer_start": 0},
    "offset as text": BARE | {"id": "r", "answer_text": "Ada Byron", "answer_start": "0"},
    "offset as float": BARE | {"id": "r", "answer_text": "Ada Byron", "answer_start": 0.0},
    "possible": ROW | {"is_impossible": False},
    "own": BARE | {"answer": "Ada Byron"},
    "as JSON in text": ROW | {"answers": json.dumps(ROW["answers"])},
    "as Python in text": ROW | {"answers": str(ROW["answers"])},
    "lists in text": BARE | {"id": "r", "answer": "['Ada Byron']", "answer_start": "[0]"},
    "Label Studio": BARE | {"id": "r", "answer": [{"start": 0, "end": 9, "text": "Ada Byron"}]},
    "empty column first": BARE | {"id": "r", "answers": None, "answer": "Ada Byron"},
}


@each_form
@pytest.mark.parametrize("name", SAME)
def test_a_question_is_the_same_in_every_form(
    tmp_path: Path, form: Callable[[list[Row], Path], Any], name: str
) -> None:
    data = read_passages(form([SAME[name]], tmp_path))
    (question,) = data.questions
    assert data.passages[0].context == CONTEXT
    assert (question.text, question.golds) == ("Who kept bees?", ("Ada Byron",))
    assert question.answers == (Answer("Ada Byron", 0),)
    assert data.version == "1.1"
    expected = {"integer id": "7", "own": question.id}.get(name, "r")
    assert question.id == expected


UNANSWERED: dict[str, Row] = {
    "empty lists": BARE | {"id": "n", "answers": {"text": [], "answer_start": []}},
    "empty text": ROW | {"id": "n", "answers": {"text": [""], "answer_start": [-1]}},
    "two columns, -1": BARE | {"id": "n", "answer_text": "", "answer_start": -1},
    "two columns, 0": BARE | {"id": "n", "answer_text": "", "answer_start": 0},
    "two columns, null": BARE | {"id": "n", "answer_text": None, "answer_start": None},
    "own": BARE | {"id": "n", "answer": ""},
    "impossible": BARE | {"id": "n", "answer_text": "", "answer_start": 0, "is_impossible": True},
    "empty object in text": BARE | {"id": "n", "answers": "{}"},
    "null in a list": BARE | {"id": "n", "answers": [None]},
    "list and -1": BARE | {"id": "n", "answer_text": [], "answer_start": -1},
}


@each_form
@pytest.mark.parametrize("name", UNANSWERED)
def test_no_answer_has_many_forms(
    tmp_path: Path, form: Callable[[list[Row], Path], Any], name: str
) -> None:
    data = read_passages(form([UNANSWERED[name]], tmp_path))
    assert [(q.id, q.golds, q.answerable) for q in data.questions] == [("n", (), False)]
    assert data.version == "2.0"


@each_form
def test_an_answer_to_an_impossible_question_is_refused_or_left_out(
    tmp_path: Path, form: Callable[[list[Row], Path], Any]
) -> None:
    rows = [ROW | {"is_impossible": False}, ROW | {"id": "bad", "is_impossible": True}]
    source = form(rows, tmp_path)
    with pytest.raises(InputError, match="id 'bad': is_impossible is true, but"):
        read_passages(source)
    data = read_passages(source, on_bad="skip")
    assert (data.order, data.skipped) == (("r",), {"questions": 1})


@each_form
def test_rows_of_one_question_become_its_answers(
    tmp_path: Path, form: Callable[[list[Row], Path], Any]
) -> None:
    texts = ("Ada Byron", "Byron")
    rows = [ROW | {"answers": {"text": [t], "answer_start": [CONTEXT.find(t)]}} for t in texts]
    (question,) = read_passages(form(rows, tmp_path)).questions
    assert question.golds == texts
    assert question.answers == (Answer("Ada Byron", 0), Answer("Byron", 4))


@each_form
@pytest.mark.parametrize("columns", [("answers",), ("answer_text",), ("answer",)])
def test_lists_in_two_columns_keep_their_offsets(
    tmp_path: Path, form: Callable[[list[Row], Path], Any], columns: tuple[str]
) -> None:
    second = CONTEXT.rindex("she sold")
    rows = [BARE | {"id": "r", columns[0]: ["she sold", "wax"], "answer_start": [second, 61]}]
    (question,) = read_passages(form(rows, tmp_path)).questions
    assert question.answers == (Answer("she sold", second), Answer("wax", 61))


@each_form
def test_repeated_rows_without_an_answer_are_one_question(
    tmp_path: Path, form: Callable[[list[Row], Path], Any]
) -> None:
    data = read_passages(form([UNANSWERED["own"]] * 2, tmp_path))
    assert (data.order, data.version) == (("n",), "2.0")


def test_a_question_with_and_without_answers_is_refused() -> None:
    rows = [BARE | {"answer": ""}, BARE | {"answer": "wax"}]
    told = "row 1: the question has an answer here, but none in row 0"
    with pytest.raises(InputError, match=told):
        read_passages(rows)
    with pytest.raises(
        InputError, match="row 1: the question has no answer here, but one in row 0"
    ):
        read_passages(rows[::-1])
    with pytest.raises(InputError, match=told.replace(":", ", id '7':")):
        read_passages([row | {"id": 7} for row in rows])
    assert read_passages(rows, on_bad="skip").skipped == {"questions": 1}


@each_form
@pytest.mark.parametrize("name", ["is_answerable", "answerable", "hasAnswer"])
def test_answers_to_questions_that_are_not_answerable_are_refused(
    tmp_path: Path, form: Callable[[list[Row], Path], Any], name: str
) -> None:
    with pytest.raises(InputError, match="id 'r': is_answerable is false, but the question has a"):
        read_passages(form([ROW | {name: False}], tmp_path))
    assert read_passages(form([ROW | {name: 1}], tmp_path)).order == ("r",)
    with pytest.raises(InputError, match="is_answerable is true, but the question has no answer"):
        read_passages(form([UNANSWERED["own"] | {name: True}], tmp_path))


@pytest.mark.parametrize("value", [1, 1.0, "1", "True", "true"])
@pytest.mark.parametrize("official", [False, True])
def test_truth_is_written_in_many_ways(tmp_path: Path, value: object, official: bool) -> None:
    def source(row: Row) -> Any:
        if not official:
            return [row]
        path = tmp_path / "data.json"
        paragraph = {"context": row["context"], "qas": [row]}
        path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}), "utf-8")
        return path

    with pytest.raises(InputError, match="is_impossible is true, but"):
        read_passages(source(ROW | {"is_impossible": value}))
    for empty in (None, "", "nan", float("nan")):
        assert read_passages(source(ROW | {"is_impossible": empty})).order == ("r",)


@each_form
def test_made_ids_depend_on_the_content_alone(
    tmp_path: Path, form: Callable[[list[Row], Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [BARE | {"question": f"Question {n}?", "answer": "Turin"} for n in (1, 2)]
    data = read_passages(form(rows, tmp_path))
    assert caplog.text.count("ids are made from the content") == 1
    turned = read_passages(list(reversed(rows)))
    assert set(data.order) == set(turned.order)
    assert len(set(data.order)) == data.made_ids == 2
    with pytest.raises(InputError, match="2 questions without an id"):
        check_ids(data, data.order[:1])
    check_ids(data, data.order)


@each_form
@pytest.mark.parametrize("id", ["", " ", None])
def test_an_empty_id_is_no_id(
    tmp_path: Path, form: Callable[[list[Row], Path], Any], id: str | None
) -> None:
    rows = [ROW | {"id": id, "question": f"Question {n}?"} for n in (1, 2)]
    data = read_passages(form(rows, tmp_path))
    assert data.made_ids == len(data.order) == 2


def test_an_empty_id_is_no_id_in_official_json(tmp_path: Path) -> None:
    document = official()
    document["data"][0]["paragraphs"][0]["qas"][0]["id"] = ""
    assert read_passages(write(tmp_path, document)).made_ids == 1


def test_made_ids_are_not_told_to_users() -> None:
    with pytest.raises(InputError, match="row 0: is_impossible is true, but"):
        read_passages([BARE | {"answer": "wax", "is_impossible": True}])


@pytest.mark.parametrize("context", ["1,260 people, 60 days", "60 days of 1,260 people"])
def test_an_answer_inside_a_longer_word_or_number_is_not_another_place(context: str) -> None:
    data = read_passages([{"context": context, "question": "How long?", "answer": "60"}])
    assert not data.unplaced
    assert data.questions[0].answers == (Answer("60", context.index("60 d")),)


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_an_answer_without_offset_that_occurs_twice_is_named_and_learned_at_its_first_place(
    on_bad: Literal["stop", "skip"], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [BARE | {"answer": "she sold"}, BARE | {"id": "b", "answer": "bees"}]
    data = read_passages([*rows, BARE | {"id": "c", "answer": ["wax", "sold"]}])
    assert [question.answers for question in data.questions][::2] == [(), (Answer("wax", 61),)]
    assert [str(each) for each in data.unplaced] == [
        "row 0, answer_start: the answer 'she sold' has no offset, and the context contains it "
        "more than once",
        "row 2, answer_start[1], id 'c': the answer 'sold' has no offset, and the context contains "
        "it more than once",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "loraqa"):
        learned = data.to_learn_from(on_bad)
    assert learned.order == data.order
    assert [question.golds for question in learned.questions] == [
        question.golds for question in data.questions
    ]
    assert [question.answers for question in learned.questions] == [
        (Answer("she sold", 32),),
        (Answer("bees", 15),),
        (Answer("wax", 61), Answer("sold", 36)),
    ]
    assert caplog.messages == [
        "the table: answers without an offset that occur more than once in their context: 2, such "
        "as 'she sold' (row 0, answer_start). Training takes the first place of each; give the "
        "offset where another one is meant."
    ]


@pytest.mark.parametrize(
    ("answer", "start"),
    [
        ("bee", 12),
        ("bees", 0),
        ("Bee", 29),
        ("ee", 1),
        ("蜂", 34),
        ("cafe\u0301 au", 38),
    ],
)
def test_the_first_place_is_one_of_whole_words_if_there_is_any(answer: str, start: int) -> None:
    context = "bees, bees, bee or bees Bees Bee 蜜蜂 蜂 café au café\u00a0au"
    rows = [{"context": context, "question": "Which?", "answer": answer}]
    (question,) = read_passages(rows).to_learn_from("stop").questions
    assert question.answers[0].start == start


def test_an_offset_that_is_not_known_is_no_wrong_one(tmp_path: Path) -> None:
    data = read_passages([BARE | {"answer": "she sold"}])
    write_official(tmp_path / "data.json", data.passages, "1.1")
    (question,) = read_passages(tmp_path / "data.json").to_learn_from("stop").questions
    assert question.answers == (Answer("she sold", 32),)


def test_unplaced_answers_of_a_question_that_is_left_out_are_forgotten() -> None:
    other = {"id": "b", "context": "Rye, rye and more rye.", "question": "Who?", "answer": "rye"}
    rows = [BARE | {"id": "b", "answer": "Ada Byron"}, other]
    data = read_passages(rows, on_bad="skip")
    assert (data.order, data.unplaced) == (("b",), ())
    assert data.to_learn_from("stop").questions[0].answers == (Answer("Ada Byron", 0),)


def test_blanks_around_an_answer_without_offset_do_not_count(tmp_path: Path) -> None:
    data = read_passages([{"context": "By  Ada.", "question": "Who?", "answer": " Ada"}])
    assert (data.questions[0].golds, data.repaired) == (("Ada",), 0)
    assert data.questions[0].answers == (Answer("Ada", 4),)
    write_official(tmp_path / "data.json", data.passages, "1.1")
    assert read_passages(tmp_path / "data.json").passages == data.passages


def test_an_offset_with_a_fraction_is_refused() -> None:
    for start in (0.5, "0.5", "first"):
        with pytest.raises(InputError, match=f"is '{start}', must be a whole number"):
            read_passages([BARE | {"id": "r", "answer_text": "Ada Byron", "answer_start": start}])


def official(**keys: Any) -> dict[str, Any]:
    qas = [{"id": 3, "question": "Who?", "answers": [{"text": "Turin", "answer_start": 25}]}]
    return {"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]} | keys


def write(folder: Path, document: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(document), "utf-8")
    return path


@pytest.mark.parametrize("version", [{}, {"version": 2.0}, {"version": "Our_v3"}])
def test_the_questions_decide_a_version_that_is_not_squads(
    tmp_path: Path, version: dict[str, Any]
) -> None:
    document = official(**version)
    assert read_passages(write(tmp_path, document)).version == "1.1"
    qas = document["data"][0]["paragraphs"][0]["qas"]
    qas.append({"id": 4, "question": "Why?", "answers": [], "is_impossible": True})
    data = read_passages(write(tmp_path, document))
    assert (data.version, data.order) == ("2.0", ("3", "4"))


@pytest.mark.parametrize("key", ["isImpossible", "Is Impossible", "unanswerable", "answerable"])
def test_keys_of_official_json_are_read_by_their_letters_too(tmp_path: Path, key: str) -> None:
    document = official()
    document["data"][0]["paragraphs"][0]["qas"][0] |= {key: key != "answerable"}
    with pytest.raises(InputError, match="id '3': is_.* but the question has answers"):
        read_passages(write(tmp_path, document))


def test_an_empty_object_is_no_answer() -> None:
    (question,) = read_passages([BARE | {"answers": {}}]).questions
    assert not question.answerable


def test_paragraphs_and_one_row_are_data(tmp_path: Path) -> None:
    paragraphs = official()["data"][0]["paragraphs"]
    assert read_passages(write(tmp_path, paragraphs)).order == ("3",)
    assert read_passages(write(tmp_path, ROW)).order == ("r",)


def test_splits_are_named_and_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, {"train": [ROW], "test": [ROW | {"id": "t"}]})
    with pytest.raises(InputError, match=r"has the splits train, test; choose .*data.json:train"):
        read_passages(path)
    assert read_passages(f"{path}:test").order == ("t",)
    with pytest.raises(InputError, match="has the splits train, test"):
        read_passages(f"{path}:dev")
    splits = {"train": datasets.Dataset.from_list([ROW])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="has the splits train"):
        read_passages(tmp_path / "saved")
    assert read_passages(f"{tmp_path / 'saved'}:train").order == ("r",)


def test_blanks_in_a_header_and_numpys_scalars_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(
        "id, context, question, answers\nr,\"By Ada.\",Who?,\"{'text': [np.str_('Ada')], "
        "'answer_start': array([np.int64(3)])}\"\n"
    )
    assert read_passages(path).questions[0].answers == (Answer("Ada", 3),)


def test_nan_is_an_answer_where_cells_have_types() -> None:
    assert read_passages([BARE | {"answer": "NaN"}]).questions[0].golds == ("NaN",)


def test_nan_means_no_answer_in_csv(tmp_path: Path) -> None:
    rows = [("nan", "nan"), ("NaN", "-1"), ("<NA>", "-1"), ("\\N", "\\N"), ("", "")]
    lines = [f"{n},We eat naan.,Why?,{text},{start}" for n, (text, start) in enumerate(rows)]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["id,context,question,answer_text,answer_start", *lines]))
    assert [q.golds for q in read_passages(path).questions] == [()] * 5


def test_another_delimiter_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("id~context~question~answers\n1~a~b~c\n")
    with pytest.raises(InputError, match=r"commas, semicolons, tabs or \| between them"):
        read_passages(path)


def one(context: str, answer: str, start: int) -> QADataset:
    row = {"id": "x", "context": context, "question": "Who?"}
    return read_passages([row | {"answer_text": answer, "answer_start": start}])


@pytest.mark.parametrize("character", ["\x0c", "\x0b", "\x85", "\x1f", "\x7f"])
def test_control_characters_are_kept_and_counted(character: str) -> None:
    data = one(f"One.{character}Two\tthree.", "Two", 5)
    assert data.questions[0].answers == (Answer("Two", 5),)
    assert data.control_characters == data.counts()["control_characters"] == 1


@pytest.mark.parametrize(
    ("context", "answer", "found"),
    [
        ("By Zoe\u0308 Lo\u0301pez.", "Zo\u00eb L\u00f3pez", "Zoe\u0308 Lo\u0301pez"),
        ("By Zo\u00eb L\u00f3pez.", "Zoe\u0308 Lo\u0301pez", "Zo\u00eb L\u00f3pez"),
        ("By Zo\u00eb\u202fL\u00f3pez.", "Zo\u00eb L\u00f3pez", "Zo\u00eb\u202fL\u00f3pez"),
        ("By Zo\u00eb\nLopez.", "Zo\u00eb Lopez", "Zo\u00eb\nLopez"),
        ("By Zo\u200b\u00eb Lopez.", "Zo\u00eb Lopez", "Zo\u200b\u00eb Lopez"),
        ("By Zoe Lopez.", "Zoe\ufeff Lopez", "Zoe Lopez"),
        ("By a\u0323\u0307x.", "a\u0307\u0323x", "a\u0323\u0307x"),
        ("By \ud55c\uae00.", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\ud55c\uae00"),
    ],
)
@pytest.mark.parametrize("start", [0, 3])
def test_look_alikes_are_placed(context: str, answer: str, found: str, start: int) -> None:
    data = one(context, answer, start)
    assert data.questions[0].answers == (Answer(found, 3),)
    assert data.questions[0].golds == (answer,)
    assert data.repaired == 1


def test_a_look_alike_never_parts_a_character() -> None:
    data = one("A \ufb01sh and Rene\u0301.", "i\u00adsh", 3)
    assert not data.questions[0].answers
    assert not one("By Ren\u00e9.", "Re\u00adne", 3).questions[0].answers


@pytest.mark.parametrize("empty", [None, "", [], float("nan")])
def test_a_filled_answer_beside_any_empty_answers_is_read(empty: Any) -> None:
    row = {"context": "Built by Ruth Olen.", "question": "Who?", "answers": empty}
    (question,) = read_passages([row | {"answer": "Ruth Olen"}]).questions
    assert question.answers == (Answer("Ruth Olen", 9),)


@pytest.mark.parametrize("year", [1203, 1203.0])
@pytest.mark.parametrize("column", ["answers", "answer", "answer_text"])
def test_a_number_is_the_text_of_an_answer(tmp_path: Path, year: float, column: str) -> None:
    """pandas turns a column of years into numbers, and into floats if it has gaps."""
    row = {"context": "Built in 1203.", "question": "When?", column: year}
    for source in ([row], pd.DataFrame([row, {**row, "question": "Why?", column: None}])):
        first, *others = read_passages(source).questions
        assert first.answers == (Answer("1203", 9),)
        assert not any(other.answers for other in others)
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    assert read_passages(tmp_path / "data.jsonl").questions[0].answers == (Answer("1203", 9),)


@pytest.mark.parametrize(
    "answers",
    [
        [1203],
        {"text": 1203, "answer_start": 9},
        {"text": [1203], "answer_start": [9]},
        [{"text": 1203, "answer_start": 9}],
    ],
)
def test_numbers_in_lists_and_objects_are_texts(tmp_path: Path, answers: Any) -> None:
    row = {"context": "Built in 1203.", "question": "When?", "answers": answers}
    assert read_passages([row]).questions[0].answers == (Answer("1203", 9),)
    path = write(tmp_path, {"context": row["context"], "qas": [row]})
    assert read_passages(path).questions[0].answers == (Answer("1203", 9),)


def test_articles_and_paragraphs_are_read_alone_and_in_lists(tmp_path: Path) -> None:
    paragraph = {
        "context": "Built by Ruth Olen.",
        "qas": [{"id": "a", "question": "Who?", "answers": [{"text": "Ruth", "answer_start": 9}]}],
    }
    article = {"title": "Mill", "paragraphs": [paragraph]}
    shapes = [
        paragraph,
        [paragraph],
        {"data": [paragraph]},
        article,
        [article],
        {"data": [article]},
    ]
    for shape in shapes:
        (tmp_path / "data.json").write_text(json.dumps(shape))
        (question,) = read_passages(tmp_path / "data.json").questions
        assert question.answers == (Answer("Ruth", 9),)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_articles_and_paragraphs_may_be_lines(tmp_path: Path, name: str) -> None:
    article = official()["data"][0]
    paragraph = {"context": "By Ruth Olen.", "title": "Mill", "qas": [BARE | {"answers": ["Ruth"]}]}
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, [article, paragraph, ROW])))
    data = read_passages(path)
    assert [q.golds for q in data.questions_in_order] == [("Turin",), ("Ruth",), ("Ada Byron",)]
    assert data.passages[1].title == "Mill"
    del paragraph["qas"][0]["answers"]
    path.write_text("\n".join(map(json.dumps, [article, paragraph])))
    with pytest.raises(InputError, match=r"line 2, qas\[0\]: 'answers' is missing"):
        read_passages(path)


def test_a_list_of_rows_is_read_by_any_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps([ROW], indent=1))
    assert read_passages(path).order == ("r",)
