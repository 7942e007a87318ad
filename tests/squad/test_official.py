"""Official JSON: reading, writing, and the round trip."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.errors import InputError
from loraqa.squad import Answer, Passage, Question, read_passages, write_official

Document = dict[str, Any]


def store(folder: Path, document: Document) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_passages_questions_and_answers_are_read(tmp_path: Path, document: Document) -> None:
    data = read_passages(store(tmp_path, document))
    nile, oslo = data.passages
    assert nile.title == "Nile"
    assert nile.questions == (
        Question(
            "n1", " Where does the Nile flow?", (Answer("north", 15), Answer("flows north", 9))
        ),
        Question("n2", "Who measured it?"),
    )
    assert [question.answerable for question in data.questions] == [True, False, True, True]
    for answer in (answer for question in oslo.questions for answer in question.answers):
        assert oslo.context[answer.start : answer.end] == answer.text
    assert data.version == "2.0"
    assert data.counts() == {
        "contexts": 2,
        "questions": 4,
        "unanswerable": 1,
        "same_text": 0,
        "repaired": 0,
        "unplaced": 0,
        "made_ids": 0,
        "control_characters": 0,
        "skipped": {},
    }


@pytest.mark.parametrize(
    ("declared", "version"), [("1.1", "1.1"), ("v1.1", "1.1"), ("v2.0", "2.0"), ("2.0", "2.0")]
)
def test_the_declared_version_is_used(
    tmp_path: Path, document: Document, declared: str, version: str
) -> None:
    document["version"] = declared
    del document["data"][0]
    assert read_passages(store(tmp_path, document)).version == version


def test_a_repeated_context_is_one_passage(tmp_path: Path, document: Document) -> None:
    nile, oslo = document["data"]
    again = {
        "context": nile["paragraphs"][0]["context"],
        "qas": [nile["paragraphs"][0]["qas"].pop()],
    }
    oslo["paragraphs"].append(again)
    data = read_passages(store(tmp_path, document))
    assert [[q.id for q in passage.questions] for passage in data.passages] == [
        ["n1", "n2"],
        ["o1", "o2"],
    ]
    assert [passage.title for passage in data.passages] == ["Nile", "Oslo"]
    assert data.order == ("n1", "o1", "o2", "n2")


def test_repeated_questions_are_kept_and_counted(tmp_path: Path, document: Document) -> None:
    first, second = document["data"][1]["paragraphs"][0]["qas"]
    first["question"] = second["question"] = document["data"][0]["paragraphs"][0]["qas"][0][
        "question"
    ]
    data = read_passages(store(tmp_path, document))
    assert len(data.questions) == 4
    assert data.same_text == 1


def test_a_missing_title_is_empty(tmp_path: Path, document: Document) -> None:
    del document["data"][0]["title"]
    assert [p.title for p in read_passages(store(tmp_path, document)).passages] == ["", "Oslo"]


def test_a_paragraph_without_questions_is_counted(
    tmp_path: Path, document: Document, caplog: pytest.LogCaptureFixture
) -> None:
    document["data"][0]["paragraphs"].append({"context": "Nobody asks.", "qas": []})
    with caplog.at_level(logging.WARNING, "loraqa"):
        data = read_passages(store(tmp_path, document))
    assert len(data.passages) == 2
    assert data.skipped == {"paragraphs": 1}
    assert "left out paragraphs: 1" in caplog.text


words = st.text(st.sampled_from("abc é漢🙂\n\t'\"\\\u2028"), min_size=1, max_size=12).filter(
    str.strip
)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[Passage], str]:
    """Passages with distinct contexts and ids, and a version that allows them."""
    version = draw(st.sampled_from(["1.1", "2.0"]))
    passages = []
    for number, context in enumerate(draw(st.lists(words, min_size=1, max_size=4, unique=True))):
        starts = st.integers(0, len(context) - 1)
        spans = st.builds(
            lambda a, b, context=context: Answer(context[min(a, b) : max(a, b) + 1], min(a, b)),
            starts,
            starts,
        ).filter(lambda answer: answer.text.strip())
        answers = st.lists(spans, min_size=version == "1.1", max_size=3).map(tuple)
        asked = draw(st.lists(st.tuples(words, answers), min_size=1, max_size=3))
        questions = tuple(Question(f"{number}-{i}", *item) for i, item in enumerate(asked))
        passages.append(Passage(context, questions, draw(st.sampled_from(["", "A", "B"]))))
    return passages, version


@given(data_sets())
def test_written_data_is_read_back_unchanged(tmp_path_factory: Any, data: Any) -> None:
    passages, version = data
    path = tmp_path_factory.mktemp("round") / "data.json"
    write_official(path, passages, version)
    again = read_passages(path)
    assert (list(again.passages), again.version) == (passages, version)
    assert not again.repaired


def test_written_json_is_the_official_document(tmp_path: Path, document: Document) -> None:
    data = read_passages(store(tmp_path, document))
    write_official(tmp_path / "again.json", data.passages, data.version)
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == document


def test_v1_refuses_a_question_without_an_answer(tmp_path: Path) -> None:
    passages = [Passage("c", (Question("q7", "Why?"),))]
    with pytest.raises(InputError, match="'q7' has no answer"):
        write_official(tmp_path / "data.json", passages, "1.1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "contexts", "questions", "unanswerable"),
    [
        ("squad1-train", 2429, 11877, 0),
        ("squad1-dev", 913, 4961, 0),
        ("squad2-dev", 636, 6440, 3363),
    ],
)
def test_real_data_has_no_problem(
    shared: Path, tmp_path: Path, name: str, contexts: int, questions: int, unanswerable: int
) -> None:
    path = shared / "data" / f"{name}.json"
    data = read_passages(path)
    counts = data.counts()
    assert (counts["contexts"], counts["questions"]) == (contexts, questions)
    assert (counts["unanswerable"], counts["skipped"]) == (unanswerable, {})
    for passage in data.passages:
        for question in passage.questions:
            for answer in question.answers:
                assert passage.context[answer.start : answer.end] == answer.text
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    assert data.order == tuple(qa["id"] for paragraph in paragraphs for qa in paragraph["qas"])
    write_official(tmp_path / "again.json", data.passages, data.version)
    assert read_passages(tmp_path / "again.json").passages == data.passages
