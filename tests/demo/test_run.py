"""The demo from its data to its report, small, and what it tells its user."""

import html
import io
import json
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.conftest import town_passages

from loraqa.demo import check_choice
from loraqa.demo.parts import BASE, DemoSize
from loraqa.demo.run import (
    STRATEGIES,
    DemoResult,
    _make_room,
    _next_steps,
    run_demo,
)
from loraqa.errors import InputError
from loraqa.files import contents, one_writer
from loraqa.reader import Reader
from loraqa.report.comparison import findings
from loraqa.squad import QADataset, read_passages, score, write_official
from loraqa.train.run import RunDirectory

SIZE = DemoSize(train_contexts=60, dev_contexts=2, test_contexts=6, epochs=2, compared_questions=8)


@dataclass(frozen=True)
class Demo:
    """A demo that was run: its folder, its result and what it printed."""

    out: Path
    result: DemoResult
    printed: str

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.out / "run")

    def data(self, part: str) -> QADataset:
        return read_passages(self.out / "data" / f"{part}.json")

    def read(self, name: str) -> Any:
        return json.loads((self.out / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo") / "out"
    console = Console(file=io.StringIO(), width=100, highlight=False, markup=False)
    result = run_demo(out, console, SIZE)
    return Demo(out, result, console.file.getvalue())


def test_the_data_has_the_size_that_was_asked_for(demo: Demo) -> None:
    sizes = [len(demo.data(part).passages) for part in ("train", "dev", "test")]
    assert sizes == [60, 2, 6]


def test_it_trains_on_all_the_data_and_learns(demo: Demo) -> None:
    told = demo.read("run/data.json")
    assert told["train"]["sha256"] == demo.data("train").fingerprint
    assert told["dev"]["sha256"] == demo.data("dev").fingerprint
    steps = [record for record in demo.run.metrics() if record["kind"] == "train"]
    assert len(steps) == demo.result.trained.steps > 2
    assert steps[-1]["epoch"] == SIZE.epochs
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert demo.result.trained.run == demo.run.path


def test_its_scores_are_those_of_the_test_data(demo: Demo) -> None:
    test = demo.data("test")
    for evaluated in (demo.result.before, demo.result.after):
        assert set(evaluated.predictions) == {question.id for question in test.questions}
        assert evaluated.scores == score(evaluated.predictions, test)
    assert demo.result.before.predictions != demo.result.after.predictions


def test_its_answers_are_those_of_the_run(demo: Demo) -> None:
    passage = demo.data("test").passages[0]
    questions = [question.text for question in passage.questions]
    answers = Reader.load(demo.out / "run").answer(passage.context, questions)
    expected = [demo.result.after.predictions[question.id] for question in passage.questions]
    assert [answer.text for answer in answers] == expected


def test_it_compares_every_strategy_on_the_same_questions(demo: Demo) -> None:
    rows = demo.read("run/comparison/comparison.json")
    assert [row["strategy"] for row in rows] == list(STRATEGIES)
    assert {row["questions"] for row in rows} == {SIZE.compared_questions}
    samples = {row["strategy"]: row["samples"] for row in rows}
    # The beams of a search bound its answers, and greedy decoding has one.
    fewer = {"greedy": 1, "beam:4": 4}
    assert samples == {name: fewer.get(name, 5) for name in STRATEGIES}
    assert (demo.out / "run" / "comparison" / "quality-against-diversity.png").stat().st_size > 1000
    table = (demo.out / "run" / "comparison" / "comparison.md").read_text(encoding="utf-8")
    assert all(name in table for name in STRATEGIES)


def test_its_result_is_json(demo: Demo) -> None:
    result = json.loads(json.dumps(demo.result.to_json(), allow_nan=False))
    total = len(demo.data("test").questions)
    assert result["before"]["total"] == result["after"]["total"] == total
    assert result["after"]["f1"] == demo.result.after.scores.f1
    assert result["train_seconds"] == demo.result.trained.training_seconds > 0
    assert result["strategies"] == demo.read("run/comparison/comparison.json")
    assert result["report"] == str(demo.out / "run" / "report.html")


def test_the_report_shows_scores_training_strategies_and_answers(demo: Demo) -> None:
    page = html.unescape((demo.out / "run" / "report.html").read_text(encoding="utf-8"))
    assert page.count("<svg") == 4
    for strategy in STRATEGIES:
        assert strategy in page
    before, after = demo.result.before.scores, demo.result.after.scores
    assert f"{before.f1:.1f} → {after.f1:.1f}" in page
    assert all(paragraph in page for paragraph in findings(demo.result.compared))
    for passage in demo.data("test").passages[:5]:
        assert passage.questions[0].text in page
    evaluated = demo.read("run/report.json")["evaluation"]
    assert evaluated["scores"]["f1"] == after.f1


def test_the_console_shows_scores_answers_and_next_steps(demo: Demo) -> None:
    assert "60 paragraphs" in demo.printed
    for evaluated in (demo.result.before, demo.result.after):
        scores = f"F1 {evaluated.scores.f1:.1f} on {evaluated.scores.total} questions"
        assert f"{scores} in {evaluated.seconds:.1f} seconds" in demo.printed.replace("\n", " ")
    assert demo.data("test").passages[0].questions[0].text in demo.printed
    assert _next_steps(demo.out, str(BASE)) in demo.printed


def test_it_takes_the_place_of_an_earlier_demo_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EnoughError(Exception):
        """Stops the demo once its data is written."""

    def stop(*_: object, **__: object) -> None:
        raise EnoughError

    monkeypatch.setattr("loraqa.demo.run.Reader.load", stop)
    console = Console(file=io.StringIO())
    small = DemoSize(train_contexts=1, dev_contexts=1, test_contexts=1)
    out = tmp_path / "out"
    with pytest.raises(EnoughError):
        run_demo(out, console, small)
    (out / "report.html").write_text("old")
    with pytest.raises(EnoughError):
        run_demo(out, console, small)
    assert [path.name for path in out.iterdir()] == ["data"]
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Ada")
    with pytest.raises(InputError, match="letters exists and is no earlier demo; name another"):
        run_demo(tmp_path / "letters", console, small)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "Ada"


def test_a_demo_that_was_killed_while_it_removed_another_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """Stops the demo after so many renames."""

    rename = Path.rename
    for after in range(4):
        out = tmp_path / str(after)
        for part in ("run", "data", "comparison"):
            (out / part).mkdir(parents=True)
        (out / "data" / "train.json").touch()
        done: list[Path] = []

        def stopped(self: Path, target: Path, done: list[Path] = done, last: int = after) -> Path:
            if len(done) == last:
                raise KilledError
            done.append(self)
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", stopped)
        with pytest.raises(KilledError):
            run_demo(out, Console(file=io.StringIO()), DemoSize(1, 1, 1))
        monkeypatch.setattr(Path, "rename", rename)
        _make_room(out)
        assert contents(out) == []


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A demo with another model, with data of its own, and without any acceleration."""
    folder = tmp_path_factory.mktemp("own")
    for name, passages in (("learn", town_passages(12)), ("score", town_passages(6))):
        write_official(folder / f"{name}.json", passages, "1.1")
    # Narrower than the paths, which are told unbroken, so that they can be copied.
    console = Console(file=io.StringIO(), width=40, highlight=False, markup=False)
    shutil.copytree(BASE, folder / "base")
    result = run_demo(
        folder / "out",
        console,
        DemoSize(epochs=1, test_questions=4, compared_questions=2),
        model=str(folder / "base"),
        train=str(folder / "learn.json"),
        dev=str(folder / "score.json"),
        without=("all",),
    )
    return Demo(folder / "out", result, console.file.getvalue())


def test_another_model_learns_from_own_data(own: Demo) -> None:
    base, data = own.out.parent / "base", own.read("run/data.json")
    assert data["base"]["source"] == str(base)
    assert data["train"]["questions"] == 24
    assert own.data("train").passages == tuple(town_passages(12))
    assert len(own.data("test").questions) == own.result.after.scores.total == 4
    told = " ".join(own.printed.split())
    assert f"24 questions of {own.out.parent / 'learn.json'} to learn" in told
    assert f"4 of {own.out.parent / 'score.json'} to test" in told
    assert f"inspect --model {base}" in own.printed
    assert own.result.report.exists()
    folder = own.out.parent
    options = f"--train {folder / 'learn.json'} --dev {folder / 'score.json'}"
    card = (own.out / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"    loraqa demo --out {own.out} --model {base} {options}\n" in card


def test_accelerations_are_left_out_where_that_is_asked_for(demo: Demo, own: Demo) -> None:
    used, none = (each.read("run/environment.json")["accelerations"] for each in (demo, own))
    assert used
    assert none == []


def test_it_is_not_tested_on_what_chose_the_weights(own: Demo) -> None:
    dev, test = ({question.id for question in own.data(part).questions} for part in ("dev", "test"))
    assert dev
    assert test
    assert not dev & test


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("base", "data.json", None), "Give --train and --dev together"),
        (("base", None, "data.json"), "Give --train and --dev together"),
        ((None, "data.json", "data.json"), "give --model, too"),
        (("nowhere/at/all", None, None), "There is no folder nowhere/at/all"),
        ((str(BASE), "none.json", "none.json"), "none.json"),
    ],
)
def test_a_choice_that_cannot_work_is_refused_at_once(
    chosen: tuple[str | None, str | None, str | None], message: str
) -> None:
    with pytest.raises((InputError, OSError), match=message):
        check_choice(*chosen)


def test_two_demos_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with one_writer(tmp_path), pytest.raises(InputError, match="Another process is writing to"):
        run_demo(tmp_path, Console(file=io.StringIO()))


@pytest.mark.parametrize("on_path", [True, False])
def test_the_next_steps_name_a_command_that_the_shell_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: bool
) -> None:
    program = tmp_path / "loraqa"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path if on_path else tmp_path / "elsewhere"))
    monkeypatch.setattr(sys, "argv", [".venv/bin/loraqa", "demo"])
    steps = list(map(shlex.split, _next_steps(Path("my demo"), "my model.gguf").splitlines()))
    assert {step[0] for step in steps} == {"loraqa" if on_path else ".venv/bin/loraqa"}
    assert steps[0][3:6] == ["my model.gguf", "--data", "my demo/data/test.json"]
