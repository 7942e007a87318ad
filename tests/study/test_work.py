"""An experiment from its data to its result, and what is said where that cannot be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from study.experiments import STRATEGIES, Experiment, screening
from study.report import Results
from study.work import Study
from tests.conftest import town_passages

from loraqa.errors import InputError
from loraqa.reader import Reader
from loraqa.squad import read_passages, write_official
from study import __main__ as command


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """Files with 6, 8 and 10 questions."""
    passages = town_passages(12)
    parts = {"few": passages[:3], "more": passages[3:7], "dev": passages[7:]}
    for name, part in parts.items():
        write_official(tmp_path / f"{name}.json", part, "1.1")
    return {name: tmp_path / f"{name}.json" for name in parts}


@pytest.fixture
def study(tmp_path: Path, tiny_folder: Path, data: dict[str, Path]) -> Study:
    results = Results(tmp_path / "results", read_passages(data["dev"]))
    train = [data["few"], data["more"]]
    return Study(str(tiny_folder), train, data["dev"], tmp_path / "runs", results)


@pytest.mark.parametrize(("reading", "count"), [("plain", 6), ("question twice", 10)])
def test_its_result_is_that_of_a_training_with_its_settings(
    reading: str, count: int, study: Study, tmp_path: Path, data: dict[str, Path]
) -> None:
    experiment = Experiment("reading", reading, reading=reading, questions=count, dev=8)
    study.do(experiment)
    file = tmp_path / "results" / f"{experiment.id}.json"
    result = json.loads(file.read_text())
    assert result["settings"] == experiment.all_settings
    run = tmp_path / "runs" / experiment.id
    trained = read_passages(tmp_path / "runs" / "data" / f"{experiment.id}.json")
    assert len(trained.questions) == count
    dev = {question.id: question for question in read_passages(data["dev"]).questions}
    for name in STRATEGIES:
        answers = result["answers"][name]
        assert len(answers["by_question"]) == answers["total"] == 8
        assert answers["by_question"].keys() <= dev.keys()
    assert Reader.load(run).max_length == 256
    assert [step for step, _ in result["loss"]] == list(range(1, result["steps"] + 1))
    # Its run is done, and only what came after is done again.
    file.unlink()
    study.do(experiment)
    again: dict[str, Any] = json.loads(file.read_text())
    assert again["loss"] == result["loss"]
    assert again["answers"]["span"]["by_question"] == result["answers"]["span"]["by_question"]


def test_too_few_questions_are_refused(study: Study) -> None:
    with pytest.raises(InputError, match="have 14 questions, but this experiment takes 2,000"):
        study.do(Experiment("recipe", "recipe"))


def test_the_command_says_what_is_wrong_in_one_sentence(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def said(*arguments: object) -> str:
        command_line = ["study", *arguments, "--dev", data["dev"], "--results", tmp_path]
        monkeypatch.setattr(sys, "argv", list(map(str, command_line)))
        with pytest.raises(SystemExit) as stopped:
            command.main()
        assert stopped.value.code in (1, 2)
        return str(capsys.readouterr().err)

    assert "name SQuAD v1.1 files with --train" in said("screening")
    assert "study: " in said("screening", "--train", "nowhere.json")
    train = ["--train", data["few"]]
    assert "No experiment of this stage is called 'rang'" in said(
        "screening", *train, "--only", "rang"
    )
    errors = said("confirmation", *train, "--model", "nowhere/at/all")
    missing = ", ".join(f"{e.group} {e.name}" for e in screening())
    assert f"no result yet for {missing}; the best two" in errors
    assert "have 6 questions, but this experiment takes 11,877" in errors
