"""Files of predictions: accepted and refused content."""

from pathlib import Path

import pytest

from loraqa.errors import InputError
from loraqa.squad import read_no_answer_probabilities, read_predictions


def test_predictions_are_ids_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text('{"1": "Oslo", "2": "", "3": "漢\\u0000"}', encoding="utf-8")
    assert read_predictions(path) == {"1": "Oslo", "2": "", "3": "漢\0"}


def test_probabilities_are_finite_numbers(tmp_path: Path) -> None:
    path = tmp_path / "probabilities.json"
    path.write_text('{"1": 0, "2": 0.25, "3": -7.5}')
    assert read_no_answer_probabilities(path) == {"1": 0.0, "2": 0.25, "3": -7.5}


BAD_PREDICTIONS = {
    "null": ('{"7": null}', "id '7': is null, must be text"),
    "n-best list": ('{"7": [{"text": "a"}]}', "id '7': is a list, must be text"),
    "object": ('{"7": {"text": "a"}}', "id '7': is an object, must be text"),
    "twice": ('{"7": "a", "8": "b", "7": "a"}', "id '7': appears 2 times"),
    "a list": (
        '["a"]',
        "is not a JSON object at the top level; it must be one JSON object",
    ),
    "JSON Lines": (
        '{"7": "a"}\n{"8": "b"}\n',
        "line 2, column 1: bad JSON: Extra data; it must be one JSON object",
    ),
    "cut off": ('{\n"7": "a', "line 2, column 6: bad JSON"),
    "empty": ("", "is empty"),
}


@pytest.mark.parametrize("case", BAD_PREDICTIONS)
def test_bad_predictions_are_refused(tmp_path: Path, case: str) -> None:
    content, problem = BAD_PREDICTIONS[case]
    path = tmp_path / "predictions.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=str(path)) as caught:
        read_predictions(path)
    assert problem in str(caught.value)


BAD_PROBABILITIES = {
    "text": ('{"7": "0.5"}', "id '7': is text, must be a number"),
    "true": ('{"7": true}', "id '7': is true or false, must be a number"),
    "nan": ('{"7": NaN}', "id '7': is nan, must be finite"),
    "infinite": ('{"7": -Infinity}', "id '7': is -inf, must be finite"),
    "too large": ('{"7": 1' + 400 * "0" + "}", "id '7': is inf, must be finite"),
}


@pytest.mark.parametrize("case", BAD_PROBABILITIES)
def test_bad_probabilities_are_refused(tmp_path: Path, case: str) -> None:
    content, problem = BAD_PROBABILITIES[case]
    path = tmp_path / "probabilities.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_no_answer_probabilities(path)
    assert problem in str(caught.value)


def test_all_bad_predictions_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text("{" + ", ".join(f'"{number}": {number}' for number in range(25)) + "}")
    with pytest.raises(InputError, match=r"(?s)25 problems.*id '19'.*and 5 more"):
        read_predictions(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; check the path"):
        read_predictions(tmp_path / "none.json")


def test_questions_given_as_predictions_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text('{"version": "1.1", "data": [{"paragraphs": []}]}')
    for read in (read_predictions, read_no_answer_probabilities):
        with pytest.raises(InputError, match=r"dev.json holds questions; .*--data"):
            read(tmp_path / "dev.json")


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text('{"7": "a"}', "utf-8-sig")
    assert read_predictions(tmp_path / "predictions.json") == {"7": "a"}
