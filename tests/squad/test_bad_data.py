"""Bad data: every problem is reported with its place, or skipped."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraqa.errors import InputError
from loraqa.squad import read_passages

Node = dict[str, Any]
N1 = "data[0].paragraphs[0].qas[0]"


def store(folder: Path, document: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def change(*path: str | int, to: Any) -> Callable[[Node], None]:
    """Return a function that sets one value, or deletes it if `to` is `delete`."""

    def make(document: Node) -> None:
        node: Any = document
        for key in path[:-1]:
            node = node[key]
        if to is delete:
            del node[path[-1]]
        else:
            node[path[-1]] = to

    return make


delete = object()
PARAGRAPH = ("data", 0, "paragraphs", 0)
QUESTION = (*PARAGRAPH, "qas", 0)
ANSWER = (*QUESTION, "answers", 0)

# Change to the data, reported problem, counts of what `skip` leaves out, ids that it keeps.
PROBLEMS = {
    "article": (
        change("data", 0, to=None),
        "data[0]: is null, must be an object",
        {"articles": 1},
        "o1 o2",
    ),
    "paragraphs missing": (
        change("data", 0, "paragraphs", to=delete),
        "data[0]: 'paragraphs' is missing",
        {"articles": 1},
        "o1 o2",
    ),
    "title": (
        change("data", 0, "title", to=7),
        "data[0].title: is a whole number, must be text",
        {},
        "n1 n2 o1 o2",
    ),
    "context missing": (
        change(*PARAGRAPH, "context", to=delete),
        "data[0].paragraphs[0]: 'context' is missing",
        {"paragraphs": 1, "questions": 2},
        "o1 o2",
    ),
    "context empty": (
        change(*PARAGRAPH, "context", to=" \n"),
        "data[0].paragraphs[0]: the context is empty",
        {"paragraphs": 1, "questions": 2},
        "o1 o2",
    ),
    "context with a surrogate": (
        change(*PARAGRAPH, "context", to="ab\ud83d"),
        "data[0].paragraphs[0]: the context has a lone surrogate (U+D83D) at character 2",
        {"paragraphs": 1, "questions": 2},
        "o1 o2",
    ),
    "qas": (
        change(*PARAGRAPH, "qas", to={}),
        "data[0].paragraphs[0].qas: is an object, must be a list",
        {"paragraphs": 1},
        "o1 o2",
    ),
    "question": (
        change(*QUESTION, to="Why?"),
        f"{N1}: is text, must be an object",
        {"questions": 1},
        "n2 o1 o2",
    ),
    "question empty": (
        change(*QUESTION, "question", to=""),
        f"{N1}, id 'n1': the question is empty",
        {"questions": 1},
        "n2 o1 o2",
    ),
    "question with a control character": (
        change(*QUESTION, "question", to="Why\x00?"),
        f"{N1}, id 'n1': the question has a control character (U+0000) at character 3",
        {"questions": 1},
        "n2 o1 o2",
    ),
    "id true": (
        change(*QUESTION, "id", to=True),
        f"{N1}.id: is true or false, must be text",
        {"questions": 1},
        "n2 o1 o2",
    ),
    "id twice": (
        change("data", 1, "paragraphs", 0, "qas", 0, "id", to="n1"),
        f"data[1].paragraphs[0].qas[0], id 'n1': the id is already used by {N1}",
        {"questions": 1},
        "n1 n2 o2",
    ),
    "answers missing": (
        change(*QUESTION, "answers", to=delete),
        f"{N1}, id 'n1': 'answers' is missing",
        {"questions": 1},
        "n2 o1 o2",
    ),
    "impossible with answers": (
        change(*QUESTION, "is_impossible", to=True),
        f"{N1}, id 'n1': is_impossible is true, but the question has answers",
        {"questions": 1},
        "n2 o1 o2",
    ),
    "possible without answers": (
        change(*QUESTION, "answers", to=[]),
        f"{N1}, id 'n1': is_impossible is false, but the question has no answer",
        {"questions": 1},
        "n2 o1 o2",
    ),
    "impossible is text": (
        change(*QUESTION, "is_impossible", to="no"),
        f"{N1}.is_impossible, id 'n1': is text, must be true or false",
        {"questions": 1},
        "n2 o1 o2",
    ),
    "unanswerable in v1.1": (
        change("version", to="1.1"),
        "data[0].paragraphs[0].qas[1], id 'n2': the question has no answer, which SQuAD v1.1",
        {"questions": 1},
        "n1 o1 o2",
    ),
    "answer": (
        change(*ANSWER, to=True),
        f"{N1}.answers[0], id 'n1': is true or false, must be an object",
        {"answers": 1},
        "n1 n2 o1 o2",
    ),
    "answer empty": (
        change(*ANSWER, "text", to=" "),
        f"{N1}.answers[0], id 'n1': the answer is empty",
        {"answers": 1},
        "n1 n2 o1 o2",
    ),
    "offset true": (
        change(*ANSWER, "answer_start", to=True),
        f"{N1}.answers[0].answer_start, id 'n1': is true or false, must be a whole number",
        {"answers": 1},
        "n1 n2 o1 o2",
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_is_reported_with_its_place(tmp_path: Path, document: Node, case: str) -> None:
    make, problem, _, _ = PROBLEMS[case]
    make(document)
    path = store(tmp_path, document)
    with pytest.raises(InputError) as caught:
        read_passages(path)
    first, listed, *rest = str(caught.value).splitlines()
    assert first == f"{path} has 1 problem:"
    assert listed.startswith(f"  {path}: {problem}")
    assert rest == ["Correct them, or leave them out with --on-bad skip."]


@pytest.mark.parametrize("case", PROBLEMS)
def test_skip_leaves_out_only_the_bad_part(
    tmp_path: Path, document: Node, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, problem, skipped, kept = PROBLEMS[case]
    make(document)
    with caplog.at_level(logging.WARNING, "loraqa"):
        data = read_passages(store(tmp_path, document), on_bad="skip")
    assert data.skipped == skipped
    assert " ".join(data.order) == kept
    assert problem in caplog.text
    for name, count in skipped.items():
        assert f"{name}: {count}" in caplog.text


def test_all_problems_of_one_question_are_reported(tmp_path: Path, document: Node) -> None:
    change(*QUESTION, "question", to="")(document)
    change(*ANSWER, "text", to=" ")(document)
    with pytest.raises(InputError, match=r"(?s)2 problems.*question is empty.*answer is empty"):
        read_passages(store(tmp_path, document))


def test_the_first_twenty_problems_are_listed_and_the_rest_counted(
    tmp_path: Path, document: Node
) -> None:
    question = document["data"][1]["paragraphs"][0]["qas"][0]
    for number in range(23):
        bad = copy.deepcopy(question) | {"id": f"x{number}", "question": ""}
        document["data"][1]["paragraphs"][0]["qas"].append(bad)
    with pytest.raises(InputError) as caught:
        read_passages(store(tmp_path, document))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("has 23 problems:")
    assert sum("the question is empty" in line for line in lines) == 20
    assert "x19" in lines[20]
    assert lines[21] == "  and 3 more"


@pytest.mark.parametrize("start", [-1, 0, 14, 10**30])
def test_a_wrong_offset_is_corrected_if_the_answer_occurs_once(
    tmp_path: Path, document: Node, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    change(*ANSWER, "answer_start", to=start)(document)
    with caplog.at_level(logging.WARNING, "loraqa"):
        data = read_passages(store(tmp_path, document))
    assert data.passages[0].questions[0].answers[0].start == 15
    assert data.counts()["repaired"] == 1
    assert "answers with a corrected offset or look-alike characters: 1" in caplog.text


def test_a_negative_offset_is_corrected(tmp_path: Path, document: Node) -> None:
    change(*ANSWER, to={"text": "floods.", "answer_start": -7})(document)
    passage = read_passages(store(tmp_path, document)).passages[0]
    assert passage.questions[0].answers[0].start == len(passage.context) - 7


def test_overlapping_occurrences_count_separately(tmp_path: Path, document: Node) -> None:
    document["data"][1]["paragraphs"][0]["context"] = "Oslo Bergen aaa"
    document["data"][1]["paragraphs"][0]["qas"][0]["answers"] = [{"text": "aa", "answer_start": 0}]
    data = read_passages(store(tmp_path, document))
    with pytest.raises(InputError, match="contains it more than once"):
        data.to_learn_from("stop")


BROKEN = {
    "nothing": (b"", "is empty; name another file"),
    "white space": (b" \n\n", "is empty"),
    "cut off": (b'{"version": "1.1",\n "data": [', "line 2, column 11: bad JSON"),
    "comma": (b'{"data": [],}', "line 1, column 13: bad JSON"),
    "more behind": (
        b'{"version": "1.1", "data": []}\n{}',
        "line 2, column 1: bad JSON: Extra data",
    ),
    "too deep": (b"[" * 200_000, "nested too deeply"),
    "too many digits": (b'{"data": ' + b"9" * 5000 + b"}", "too many digits"),
    "Latin-1": (b'{"version":\n"\xe9"}', r"not UTF-8: line 2 has the byte 0xE9 \(byte 13"),
    "binary": (b"\x89PNG\0\0\xff", "is a binary file, not text; name another file"),
    "UTF-16, little end": (
        "\ufeff{}".encode("utf-16-le"),
        "not UTF-8: its byte order mark begins with the byte 0xFF",
    ),
    "UTF-16, big end": (
        "\ufeff{}".encode("utf-16-be"),
        "not UTF-8: its byte order mark begins with the byte 0xFE",
    ),
    "an empty list": (b"[]", "has no usable questions"),
    "a number": (b"7", "is neither a JSON object nor a list"),
    "no questions": (b'{"version": "1.1", "data": []}', "has no usable questions"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_broken_file_is_refused(tmp_path: Path, case: str, on_bad: Any) -> None:
    content, reason = BROKEN[case]
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_passages(path, on_bad=on_bad)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; check the path"):
        read_passages(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        read_passages(tmp_path)


def test_skip_that_leaves_nothing_is_refused(tmp_path: Path, document: Node) -> None:
    document["data"] = [None]
    with pytest.raises(InputError, match="has no usable questions; correct it or name other data"):
        read_passages(store(tmp_path, document), on_bad="skip")


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "n1", "Nile", "\ud800", "\x07", "v1.1"]),
    st.lists(st.none(), max_size=2),
    st.dictionaries(st.sampled_from(["text", "id"]), st.none(), max_size=2),
)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON document."""
    if not isinstance(node, list | dict):
        return []
    keys = range(len(node)) if isinstance(node, list) else list(node)
    return [place for key in keys for place in [(node, key), *places(node[key])]]


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(draw=st.data(), official=st.booleans(), on_bad=st.sampled_from(["stop", "skip"]))
def test_changed_data_is_read_or_refused(
    tmp_path: Path, document: Node, records: list[Node], draw: Any, official: bool, on_bad: Any
) -> None:
    content = copy.deepcopy(document if official else records)
    for _ in range(draw.draw(st.integers(1, 3))):
        container, key = draw.draw(st.sampled_from(places(content)))
        if draw.draw(st.booleans()):
            container[key] = draw.draw(values)
        elif len(content) > 1 or container is not content:
            del container[key]
    lines = [content] if official else content
    path = tmp_path / "data.json"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    try:
        data = read_passages(path, on_bad=on_bad)
    except InputError:
        return
    assert len(data.order) == len(data.questions) > 0
    for passage in data.passages:
        assert passage.context.strip()
        for question in passage.questions:
            for answer in question.answers:
                assert passage.context[answer.start : answer.end] == answer.text
