"""The command line writes a report for every run, and compares two of them."""

import csv
import errno
import json
import shutil
from pathlib import Path

import pytest

from loraqa.adapter.evaluation import Evaluation
from loraqa.adapter.info import read_adapter_info
from loraqa.analysis.diff import diff
from loraqa.analysis.outcome import Outcome
from loraqa.answer.calibrate import calibrate
from loraqa.answer.reader import with_close_bounds
from loraqa.answer.span import SpanSearch
from loraqa.cli.train import _scores
from loraqa.files import read_json
from loraqa.finetuning import FinetuneResult
from loraqa.reader import Reader
from loraqa.squad import read_passages, write_official
from loraqa.train.run import RunDirectory
from tests.conftest import Call, tiny_model, town_passages

FILES = {"evaluation.json", "report.html", "report.json", "questions.csv"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "town.json"
    write_official(path, town_passages(4), "1.1")
    return path


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path: Path, tiny_folder: Path) -> Path:
    """A tiny model with the tiny tokenizer."""
    folder = tmp_path / request.param
    shutil.copytree(tiny_folder, folder)
    tiny_model(request.param).save_pretrained(folder)
    return folder


@pytest.fixture
def run(call: Call, model: Path, data: Path, tmp_path: Path) -> Path:
    """A run of two steps."""
    out = tmp_path / "run"
    status, _, told = call(
        "train", "--model", model, "--train", data, "--dev", data, "--out", out,
        "--set", "optimisation.max_steps=2", "--set", "evaluation.max_answer_tokens=6",
    )  # fmt: skip
    assert status == 0, told
    before, after = (
        [f"{record[key]:.2f}" for key in ("exact_match", "f1")]
        for record in RunDirectory(out).metrics()
        if record["kind"] == "evaluation"
    )
    assert told.splitlines()[-1] == (
        f"The adapter is in {out / 'adapter'}; {out / 'report.html'} shows the training. On "
        f"8 dev questions: exact match {before[0]} → {after[0]}, F1 {before[1]} → {after[1]}."
    )
    return out


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (
            Evaluation(0, 1.5, 20.0, 2000),
            "On 2,000 dev questions: exact match 1.50 → 50.25, F1 20.00 → 61.50.",
        ),
        (None, "On 2,000 dev questions: exact match 50.25, F1 61.50."),
    ],
)
def test_the_scores_are_told_with_those_before_where_they_are_known(
    before: Evaluation | None, says: str
) -> None:
    after = Evaluation(40, 50.25, 61.5, 2000)
    assert _scores(FinetuneResult(Path("run"), 60, before, after, 9.0, 1.0)) == says


def test_train_prints_its_result_as_one_json_object(call: Call, run: Path) -> None:
    scored = {
        record["step"]: {key: record[key] for key in ("step", "exact_match", "f1", "total")}
        for record in RunDirectory(run).metrics()
        if record["kind"] == "evaluation"
    }
    status, printed, told = call("train", "--out", run, "--resume", "--json")
    assert status == 0, told
    assert "The adapter is in" not in told
    result = json.loads(printed)
    assert result.pop("training_seconds") > 0
    assert result.pop("evaluation_seconds") > 0
    assert result == {"run": str(run), "steps": 2, "before": scored[0], "after": scored[2]}


def test_without_dev_data_there_are_no_scores_to_tell(
    call: Call, model: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ["--model", model, "--train", data, "--out", tmp_path / "run"]
    status, printed, told = call("train", *arguments, "--set", "optimisation.max_steps=1", "--json")
    assert status == 0, told
    result = json.loads(printed)
    assert (result["before"], result["after"]) == (None, None)
    _, _, told = call("train", "--out", tmp_path / "run", "--resume")
    assert told.splitlines()[-1].endswith("report.html shows the training.")


def test_every_command_that_makes_results_writes_the_report(
    call: Call, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Narrower than the paths, which are told unbroken, so that they can be copied.
    monkeypatch.setenv("COLUMNS", "40")
    page, figures = run / "report.html", run / "report.json"
    told = read_json(figures)
    assert told["evaluation"]["command"].startswith("loraqa train ")
    assert told["evaluation"]["strategy"] == "span:32"
    assert [record["step"] for record in told["training"]["scores"]] == [0, 2]
    sources = told["training"]["data"]
    assert sources["train"]["sha256"] == read_passages(str(data)).fingerprint

    status, _, told = call("evaluate", run, "--data", data, "--answers", 3)
    assert status == 0
    assert f"The report is {page}.\n" in told
    assert {path.name for path in run.iterdir()} >= FILES
    evaluated = read_json(figures)["evaluation"]
    assert evaluated["scores"]["total"] == sum(evaluated["kinds"].values()) == 8
    assert evaluated["base"]["sha256"] == read_json(run / "data.json")["base"]["sha256"]
    assert evaluated["data"]["sha256"] == sources["train"]["sha256"]
    assert evaluated["command"].startswith("loraqa evaluate ")
    assert {len(asked.candidates) for asked in Outcome.load(run).questions} == {3}

    status, _, told = call("compare", run, "--data", data, "--strategies", "greedy,span")
    assert status == 0
    assert told.endswith(
        f"Words, tables and plot are in {run / 'comparison'}.\nThe report is {page}.\n"
    )
    assert [each["strategy"] for each in read_json(figures)["strategies"]] == ["greedy", "span"]
    assert read_json(figures)["evaluation"] == evaluated

    before = page.read_text()
    page.unlink()
    assert call("report", run) == (0, "", f"The report is {page}.\n")
    assert page.read_text() == before


def test_its_figures_are_those_of_the_command(call: Call, run: Path, data: Path) -> None:
    _, printed, _ = call("evaluate", run, "--data", data, "--json")
    scores = json.loads(printed)
    assert read_json(run / "report.json")["evaluation"]["scores"] == scores
    questions = Outcome.load(run).questions
    assert 100 * sum(asked.f1 for asked in questions) / 8 == pytest.approx(scores["f1"])
    rows = list(csv.DictReader((run / "questions.csv").open(encoding="utf-8", newline="")))
    assert [row["id"] for row in rows] == [asked.id for asked in questions]
    assert [row["answer"] for row in rows] == [asked.given.text for asked in questions]


def test_another_evaluation_is_replaced_aloud(call: Call, run: Path, data: Path) -> None:
    evaluate = ("evaluate", run, "--data", data)
    told = f"The report in {run} was of {run} on {data} with span:32; this evaluation replaces it"
    assert told in call(*evaluate, "--strategy", "greedy")[2]
    assert "replaces it" not in call(*evaluate, "--strategy", "greedy")[2]


def test_what_an_option_names_is_never_overwritten(
    call: Call, model: Path, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report, compared = tmp_path / "out.json", tmp_path / "report", tmp_path / "compared"
    changed, learned = tmp_path / "changed.csv", tmp_path / "learned"
    evaluate = ("evaluate", model, "--data", data, "--strategy", "greedy")
    commands: dict[Path, tuple[object, ...]] = {
        out: (*evaluate, "--out", out),
        report / "evaluation.json": (*evaluate, "--report", report),
        compared / "comparison.json": (
            *("compare", run, "--data", data, "--strategies", "greedy", "--out", compared),
        ),
        learned / "analysis.json": ("analyze", run, "--out", learned),
        changed: ("diff", report, report, "--out", changed),
    }
    for words in commands.values():
        assert call(*words)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # Nothing is loaded for that.
    monkeypatch.setattr("loraqa.cli.output.importing", None)
    for path, words in commands.items():
        told = f"loraqa: {path} exists already; name another place, or remove it.\n"
        assert call(*words) == (2, "", told)
    both = call(*evaluate, "--out", tmp_path / "new.json", "--report", report)
    assert both[0] == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_evaluation_killed_when_all_is_written_ends_the_same(
    call: Call, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report = tmp_path / "out.json", tmp_path / "report"
    words = ("evaluate", model, "--data", data, "--out", out, "--report", report)
    with monkeypatch.context() as patched:
        # What a process that is killed does not do any more.
        patched.setattr("loraqa.answer.journal.Journal.__exit__", lambda *_: None)
        assert call(*words)[0] == 0
    assert (tmp_path / "out.json.journal").exists()
    before = out.read_bytes()
    assert call(*words)[0] == 0
    assert out.read_bytes() == before
    assert not (tmp_path / "out.json.journal").exists()
    assert call(*words)[0] == 2


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_where_a_report_fails_the_same_command_goes_on_to_it(
    call: Call,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    out = tmp_path / ("out.json" if command == "evaluate" else "out")
    words = [command, model, "--data", data, "--out", out]
    if command == "compare":
        words += ["--strategies", "greedy"]

    def full(_: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    with monkeypatch.context() as patched:
        patched.setattr("loraqa.report.run.write_report", full)
        status, _, said = call(*words)
    assert (status, "The report could not be written" in said) == (0, True)
    assert not list(tmp_path.rglob("report.html"))
    assert call(*words)[0] == 0
    assert len(list(tmp_path.rglob("report.html"))) == 1
    assert call(*words)[0] == 2


def test_in_a_run_the_last_comparison_and_analysis_replace_others_aloud(
    call: Call, run: Path, data: Path
) -> None:
    compare = ("compare", run, "--data", data, "--strategies", "greedy")
    for words, told in {
        compare: f"The comparison in {run / 'comparison'} will be replaced (--out FOLDER keeps",
        (
            "analyze",
            run,
        ): f"The analysis in {run / 'analysis'} will be replaced (--out FOLDER keeps",
    }.items():
        assert told not in call(*words)[2]
        status, _, said = call(*words)
        assert (status, told in said) == (0, True)


def test_a_model_that_is_no_run_is_reported_beside_the_predictions(
    call: Call, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    evaluate = ("evaluate", model, "--data", data, "--strategy", "greedy")
    assert call(*evaluate)[0] == 0
    assert set(tmp_path.rglob("*")) == before
    assert call(*evaluate, "--out", "base.json")[0] == 0
    assert {path.name for path in (tmp_path / "base-report").iterdir()} == FILES
    assert call(*evaluate, "--report", "mine")[0] == 0
    assert {path.name for path in (tmp_path / "mine").iterdir()} == FILES
    base = Outcome.load(tmp_path / "mine").base
    assert base["source"] == str(model)
    assert len(base["sha256"]) == 64


def test_a_report_that_fails_loses_no_result(call: Call, run: Path, data: Path) -> None:
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    status, printed, told = call("evaluate", run, "--data", data, "--json")
    assert status == 0
    assert json.loads(printed)["total"] == 8
    (line,) = [line for line in told.splitlines() if "report could not be written" in line]
    assert "report.html" in line
    assert line.endswith("the results themselves are complete.")


def test_diff_compares_two_evaluations(
    call: Call, run: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    base, changed = tmp_path / "base", tmp_path / "changed.csv"
    assert call("evaluate", model, "--data", data, "--report", base)[0] == 0
    assert call("evaluate", run, "--data", data)[0] == 0
    status, printed, _ = call("diff", base, run, "--out", changed)
    assert status == 0
    assert "8 questions on 4 contexts, answered by both" in printed
    assert "McNemar's p" in printed
    _, printed, _ = call("diff", base, run, "--json")
    expected = diff(Outcome.load(base), Outcome.load(run))
    found = json.loads(printed)
    assert found["f1"]["change"]["mean"] == expected.f1.change.mean
    rows = list(csv.DictReader(changed.open(encoding="utf-8", newline="")))
    assert [row["id"] for row in rows] == [each.id for each in expected.changed]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("diff", "{empty}", "{empty}"), "holds no evaluation; make one with"),
        (("report", "{empty}"), "holds nothing to report"),
        (("report", "{empty}/missing"), "holds nothing to report"),
        (("diff", "{empty}/a", "{empty}/b"), "does not exist; check the path"),
    ],
)
def test_a_folder_without_results_is_named(
    call: Call, tmp_path: Path, command: tuple[str, ...], message: str
) -> None:
    status, _, told = call(*(word.format(empty=tmp_path) for word in command))
    assert status == 2
    assert message in told
    assert len(told.splitlines()) == 1


def with_some_right(run: Path, data: Path, out: Path) -> Path:
    """Write questions of which those are right that the run is surer of; return their file."""
    passages = read_passages(str(data)).passages
    read = Reader.load(run).read(passages, with_close_bounds(SpanSearch()))
    own = sorted((best for best, *_ in read), key=lambda answer: answer.span_probability or 0)
    right = {answer.question_id: answer.text for answer in own[len(own) // 2 :]}
    rows = [
        {"context": passage.context, "question": q.text, "answer": right.get(q.id, "nothing")}
        for passage in passages
        for q in passage.questions
    ]
    path = out / "held_out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_calibrate_gives_a_run_a_confidence(
    call: Call, run: Path, data: Path, tmp_path: Path
) -> None:
    held_out = with_some_right(run, data, tmp_path)
    expected = calibrate(Reader.load(run), read_passages(str(held_out)), 0.25, 1).calibration
    status, out, told = call(
        "calibrate", run, "--data", held_out, "--negatives", 0.25, "--seed", 1, "--json"
    )
    assert status == 0, told
    assert expected is not None
    assert json.loads(out) == {"no_answer_threshold": None, "calibration": expected.model_dump()}
    assert read_adapter_info(run / "adapter").calibration == expected
    text = tmp_path / "town.txt"
    text.write_text(read_passages(str(data)).passages[0].context)
    _, out, _ = call("ask", run, "--context-file", text, "Who built the mill?")
    assert "confidence" in out


def test_calibrate_shows_what_it_learned(call: Call, run: Path, data: Path, tmp_path: Path) -> None:
    held_out = with_some_right(run, data, tmp_path)
    status, out, told = call("calibrate", run, "--data", held_out, "--negatives", 0)
    assert status == 0, told
    assert "Confidence, from 8 questions" in out
    *_, few, kept = told.splitlines()
    assert few == "8 questions are few; expect rough numbers."
    assert kept.startswith(f"The confidence is kept in {run / 'adapter'}; `loraqa evaluate`")


def test_calibrate_keeps_nothing_if_nothing_can_be_learned(
    call: Call, run: Path, data: Path, model: Path, tmp_path: Path
) -> None:
    status, _, told = call("calibrate", run, "--data", data)
    assert status == 2
    assert f"{run} was trained on the questions of {data}" in told
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(json.dumps({"context": "Salt.", "question": "What?", "answer": "xyz"}))
    before = (run / "adapter" / "loraqa.json").read_bytes()
    status, _, told = call("calibrate", run, "--data", wrong)
    assert (status, "Nothing can be learned from 1 question of" in told) == (2, True)
    assert (run / "adapter" / "loraqa.json").read_bytes() == before
    status, _, told = call("calibrate", model, "--data", wrong)
    assert (status, f"{model} has no loraqa.json to keep a confidence in; give" in told) == (
        2,
        True,
    )
    (run / "adapter" / "loraqa.json").unlink()
    status, _, told = call("calibrate", run, "--data", wrong)
    assert (status, "write the adapter anew with `loraqa export`" in told) == (2, True)


def test_calibrate_loses_no_answers_if_the_confidence_cannot_be_written(
    call: Call, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = with_some_right(run, data, tmp_path)
    with monkeypatch.context() as full:
        full.setattr("loraqa.answer.calibrate.write_adapter_info", refuse)
        status, _, told = call("calibrate", run, "--data", held_out)
    assert status == 1
    assert "The answers so far are kept in " in told
    status, _, told = call("calibrate", run, "--data", held_out)
    assert status == 0
    assert "Going on with the answers in " in told


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "loraqa.json")


def test_calibrate_refuses_a_folder_where_nothing_can_be_written(
    call: Call, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(run.rglob("*"))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: refuse())
    status, _, told = call("calibrate", run, "--data", data)
    assert (status, f"Nothing can be written into {run / 'adapter'}" in told) == (2, True)
    assert "answering" not in told
    assert sorted(run.rglob("*")) == before


def test_calibrate_knows_the_training_questions_of_a_table_without_offsets(
    call: Call, model: Path, tmp_path: Path
) -> None:
    table, out = tmp_path / "town.jsonl", tmp_path / "run"
    rows = [
        {"context": f"The mill, {n} mills.", "question": "What?", "answer": "mill"} for n in "12"
    ]
    rows += [{"context": "A mill and a mill.", "question": "What?", "answer": "mill"}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, told = call(
        "train", "--model", model, "--train", table, "--out", out,
        "--set", "optimisation.max_steps=1",
    )  # fmt: skip
    assert status == 0, told
    for source in (out, out / "adapter"):
        status, _, told = call("calibrate", source, "--data", table)
        assert (status, f"{out} was trained on the questions of {table}" in told) == (2, True)
    (out / "data.json").write_text("[]")
    status, _, told = call("calibrate", out, "--data", table)
    assert (status, f"{out / 'data.json'} is not a JSON object" in told) == (2, True)
