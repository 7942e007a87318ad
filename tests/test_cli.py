"""The command line: exit status and output of every command on a tiny model."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import pytest
import torch

import loraqa.reader
from loraqa.answer.reader import Reader
from loraqa.speed import OF_COMMANDS, OF_MODELS, OF_PREPARATION
from loraqa.speed.trial import fastest
from loraqa.squad import Answer, Passage, Question, write_official
from tests.conftest import TOWN, Call, assert_near, town_passages
from tests.documents.conftest import pdf_of

pytestmark = pytest.mark.usefixtures("without_plots")

PASSAGES = town_passages(8)

# What `call_apart` is.
CallApart = Callable[..., tuple[int, str, str, list[str]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "town.json"
    write_official(path, PASSAGES, "1.1")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, data: Path) -> Path:
    """A run of a few steps, made by `loraqa train`."""
    out = tmp_path_factory.mktemp("runs") / "town"
    command = ["-m", "loraqa", "train", "--model", tiny_folder, "--train", data, "--dev", data]
    settings = [
        "model.dtype=float32",
        "optimisation.max_steps=4",
        "optimisation.questions_per_step=8",
        "optimisation.learning_rate=1e-2",
        "prompt.stride=16",
        "evaluation.max_answer_tokens=8",
    ]
    sets = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, *map(str, command), "--out", str(out), *sets],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return out


def test_training_writes_a_whole_run(run: Path) -> None:
    for name in ("settings.yaml", "environment.json", "data.json", "metrics.jsonl"):
        assert (run / name).is_file()
    card = (run / "adapter" / "README.md").read_text()
    assert "loraqa train --model" in card


def test_a_run_lists_its_accelerations(run: Path) -> None:
    used = json.loads((run / "environment.json").read_text())["accelerations"]
    assert used
    assert set(used) <= set(OF_MODELS)


@pytest.mark.parametrize(
    ("without", "left_out"),
    [("all", {*OF_MODELS}), ("compiled-gelu", {"compiled-gelu"}), ("preparing-process", set())],
)
def test_training_leaves_out_accelerations(
    call: Call,
    run: Path,
    data: Path,
    tiny_folder: Path,
    tmp_path: Path,
    without: str,
    left_out: set[str],
) -> None:
    out = tmp_path / "run"
    arguments = ["--model", tiny_folder, "--train", data, "--dev", data, "--out", out]
    words = ["model.dtype=float32", "optimisation.max_steps=1", f"speed.without={without}"]
    status, _, error = call("train", *arguments, *(each for w in words for each in ("--set", w)))
    assert status == 0, error
    used, all_of_them = (
        json.loads((each / "environment.json").read_text())["accelerations"] for each in (out, run)
    )
    assert used == [name for name in all_of_them if name not in left_out]
    assert f"without:\n  - {without}\n" in (out / "settings.yaml").read_text()


UNKNOWN = (
    "loraqa: There is no acceleration 'word-cash' (did you mean word-cache?); give `all`, "
    f"or one of {', '.join([*OF_MODELS, *OF_PREPARATION, *OF_COMMANDS])}.\n"
)


def test_training_without_an_unknown_acceleration_is_refused(
    call: Call, data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = ["--model", tiny_folder, "--train", data, "--out", tmp_path / "run"]
    result = call("train", *arguments, "--set", "speed.without=[word-cache, word-cash]")
    assert result == (2, "", UNKNOWN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "compare", "ask"])
def test_answering_without_an_unknown_acceleration_is_refused(
    call: Call, run: Path, data: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "town.txt").write_text(TOWN)
    ask = ["--context-file", tmp_path / "town.txt", "Who?"]
    arguments = ask if command == "ask" else ["--data", data]
    assert call(command, run, *arguments, "--without", "word-cash") == (2, "", UNKNOWN)


@pytest.mark.parametrize(
    ("without", "left_out"),
    [("all", {*OF_MODELS}), ("prepacked-weights,word-cache", {"prepacked-weights"})],
)
def test_evaluate_leaves_out_accelerations(
    call: Call,
    run: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: str,
    left_out: set[str],
) -> None:
    used: list[tuple[str, ...]] = []

    def watched(*arguments: Any) -> Any:
        runner, names = fastest(*arguments)
        used.append(names)
        return runner, names

    monkeypatch.setattr("loraqa.reader.fastest", watched)
    for name, options in {"fast": (), "plain": ("--without", without)}.items():
        out = tmp_path / f"{name}.json"
        status, _, error = call("evaluate", run, "--data", data, "--out", out, *options)
        assert status == 0, error
    assert used[0]
    assert list(used[1]) == [name for name in used[0] if name not in left_out]
    assert (tmp_path / "plain.json").read_text() == (tmp_path / "fast.json").read_text()


def test_a_run_is_not_overwritten(call: Call, run: Path, tiny_folder: Path, data: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    status, _, error = call("train", "--model", tiny_folder, "--train", data, "--out", run)
    assert status == 2
    assert "exists already" in error
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_resumes_with_its_own_settings(call: Call, run: Path) -> None:
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    status, _, error = call("train", "--out", run, "--resume")
    assert status == 0, error
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before
    status, _, error = call("train", "--out", run, "--resume", "--set", "lora.rank=3")
    assert status == 2
    assert "lora.rank was 16, now 3" in error


def without_ids(path: Path) -> Path:
    rows = [
        {"context": passage.context, "question": question.text, "answer": question.golds[0]}
        for passage in PASSAGES
        for question in passage.questions
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("ids", ["their own", "made by loraqa"])
def test_evaluate_writes_predictions_that_score_the_same(
    ids: str, call: Call, run: Path, data: Path, tmp_path: Path
) -> None:
    if ids != "their own":
        data = without_ids(tmp_path / "rows.json")
    predictions = tmp_path / "predictions.json"
    status, out, _ = call("evaluate", run, "--data", data, "--out", predictions, "--json")
    evaluated = json.loads(out)
    assert status == 0
    assert len(json.loads(predictions.read_text())) == 16
    _, out, _ = call("score", predictions, "--data", data, "--json")
    scored = json.loads(out)
    assert {key: evaluated[key] for key in scored} == scored
    assert scored["total"] == 16


def test_compare_prints_a_table_and_draws_a_plot(
    call: Call, run: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "comparison"
    status, printed, _ = call(
        "compare", run, "--data", data, "--strategies", "greedy,top-k:5,span", "--questions", 4,
        "--samples", 3, "--out", out,
    )  # fmt: skip
    assert status == 0
    assert all(name in printed for name in ("greedy", "top-k:5", "span"))
    assert (out / "quality-against-diversity.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((out / "comparison.json").read_text())) == 3


@pytest.mark.parametrize("kind", ["run", "adapter", "model"])
def test_only_a_run_is_written_into(
    call: Call,
    run: Path,
    data: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """This includes a model given by a relative path that looks like a hub name."""
    monkeypatch.chdir(tmp_path)
    source = Path("org") / kind
    shutil.copytree({"run": run, "adapter": run / "adapter", "model": tiny_folder}[kind], source)
    before = set(tmp_path.rglob("*"))
    options = ("--data", data, "--strategies", "greedy", "--questions", 1)
    assert call("compare", source, *options)[0] == 0
    assert call("analyze", source)[0] == (2 if kind == "model" else 0)
    place = source if kind == "run" else Path()
    if kind == "run":
        assert (source / "report.html").stat().st_mtime_ns > (
            run / "report.html"
        ).stat().st_mtime_ns
    made = {place / "comparison", *(() if kind == "model" else (place / "analysis",))}
    tops = {
        path
        for path in set(tmp_path.rglob("*")) - before
        if path.parent.name not in ("comparison", "analysis")
    }
    assert tops == {tmp_path / path for path in made}


def test_ask_finds_a_span(call: Call, run: Path, tmp_path: Path) -> None:
    context = tmp_path / "town.txt"
    context.write_text(TOWN)
    status, out, _ = call(
        "ask", run, "--context-file", context, "Who built the mill?", "--strategy", "span", "--json"
    )
    (answer,) = json.loads(out)["answers"]
    assert status == 0
    assert TOWN[answer["start"] : answer["end"]] == answer["text"] != ""
    _, printed, _ = call("ask", run, "--context-file", context, "Who?", "--strategy", "span")
    *_, place = printed.splitlines()
    assert place.startswith("  characters")
    assert len(place) > 80


@pytest.mark.parametrize("piped", [False, True])
def test_ask_tells_the_page_of_a_pdf(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool
) -> None:
    pages = ["A book about towns", TOWN]
    book, text = tmp_path / "book.pdf", tmp_path / "book.txt"
    book.write_bytes(pdf_of([page] for page in pages))
    standard_input(monkeypatch, book.read_bytes())
    ask = ("ask", run, "--context-file", "-" if piped else book, "Who built the mill?")
    status, out, _ = call(*ask, "--strategy", "span", "--text-out", text, "--json")
    (answer,) = json.loads(out)["answers"]
    assert status == 0
    assert text.read_text("utf-8") == "\n".join(pages)
    assert text.read_text("utf-8")[answer["start"] : answer["end"]] == answer["text"] != ""
    assert answer["page"] == 1 + (answer["start"] > len(pages[0]))
    standard_input(monkeypatch, book.read_bytes())
    _, printed, _ = call(*ask, "--strategy", "span")
    assert f"page {answer['page']}, characters {answer['start']} to" in printed


def test_text_out_never_replaces_another_text(call: Call, run: Path, tmp_path: Path) -> None:
    book, text = tmp_path / "book.pdf", tmp_path / "book.txt"
    book.write_bytes(pdf_of([[TOWN]]))
    ask = ("ask", run, "--context-file", book, "Who built the mill?", "--text-out", text)
    for _ in range(2):
        status, _, error = call(*ask)
        assert status == 0, error
        assert text.read_text("utf-8") == TOWN
    notes = TOWN.replace(" ", "\r\n").encode() + b"\xff"
    text.write_bytes(notes)
    status, out, error = call(*ask)
    assert (status, out) == (2, "")
    assert "book.txt exists already and holds something else; name another file" in error
    assert text.read_bytes() == notes


def test_text_out_never_replaces_the_file_itself(call: Call, run: Path, tmp_path: Path) -> None:
    context = tmp_path / "town.txt"
    context.write_text(TOWN)
    ask = ("ask", run, "--context-file", context, "Who?", "--text-out")
    assert "is the data file itself" in call(*ask, context)[2]
    assert context.read_text() == TOWN
    assert "is a folder; name a file" in call(*ask, tmp_path)[2]


def test_answers_in_a_pdf_have_pages_and_offsets_into_the_text(
    call: Call, run: Path, tmp_path: Path
) -> None:
    pages = ["A book about towns", TOWN]
    book, data = tmp_path / "book.pdf", tmp_path / "in.jsonl"
    book.write_bytes(pdf_of([page] for page in pages))
    data.write_text('{"question": "Who built the mill?"}\n{"question": "When?"}\n')
    out, text = tmp_path / "out.jsonl", tmp_path / "book.txt"
    answer = ("answer", run, "--data", data, "--out", out, "--text-out", text)
    assert "add it, or leave it out" in call(*answer)[2]
    answer = (*answer, "--context-file", book)
    text.write_text("my notes")
    assert call(*answer)[2].endswith(
        "book.txt exists already and holds something else; name another file, or remove it.\n"
    )
    assert text.read_text() == "my notes"
    text.unlink()
    assert "is where the answers go" in call(*answer, "--text-out", out)[2]
    assert not out.exists()
    for _ in range(2):
        # The same command, as after an interruption, finds the text that it has written.
        status, _, error = call(*answer)
        assert status == 0, error
        assert text.read_text("utf-8") == "\n".join(pages)
        for row in map(json.loads, out.read_text().splitlines()):
            assert text.read_text("utf-8")[row["start"] : row["end"]] == row["answer"] != ""
            assert row["page"] == 1 + (row["start"] > len(pages[0]))
        out.unlink()


def test_analyze_shows_every_matrix_and_the_checkpoints(
    call: Call, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "analysis"
    status, out, error = call("analyze", run, "--against", run, "--out", folder, "--json")
    assert status == 0, error
    learned = json.loads(out)
    assert learned == json.loads((folder / "analysis.json").read_text())
    assert len(learned["updates"]) == 8
    assert all(update["norm"] > 0 for update in learned["updates"])
    assert [each["step"] for each in learned["checkpoints"]] == [4]
    (other,) = learned["others"]
    assert all(each["inputs"]["value"] == pytest.approx(1) for each in other["likenesses"])
    for name in ("spectra", "by-layer", "layers", "growth", "against-1"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert 'id="learned"' in (folder / "report.html").read_text()


def test_analyze_with_data_says_what_each_part_is_worth(
    call: Call, run: Path, data: Path, tmp_path: Path
) -> None:
    words = ("analyze", run, "--data", data, "--questions", 4, "--out", tmp_path / "analysis")
    status, out, error = call(*words)
    assert status == 0, error
    assert "layer 1 off" in out
    effects = json.loads((tmp_path / "analysis" / "analysis.json").read_text())["effects"]
    assert (effects["questions"], effects["strategy"]) == (4, "greedy")
    assert (tmp_path / "analysis" / "effects.png").exists()


def test_analyze_refuses_an_adapter_of_another_base(call: Call, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run / "adapter", other)
    info = json.loads((other / "loraqa.json").read_text())
    info["base"]["sha256"] = "0" * 64
    del info["sha256"]
    (other / "loraqa.json").write_text(json.dumps(info))
    status, _, error = call("analyze", run, "--against", other, "--out", tmp_path / "analysis")
    assert status == 2
    assert error.splitlines()[-1] == (
        f"loraqa: The base model of {other} is not that of the analysed adapter (other weights); "
        "give adapters of the same base with --against."
    )


def test_the_merged_export_gives_the_same_answers(
    call: Call, run: Path, data: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert call("export", run, "--format", "merged", "--out", merged)[0] == 0
    _, from_run, _ = call("evaluate", run, "--data", data, "--json")
    _, from_merged, _ = call("evaluate", merged, "--data", data, "--json")
    timing = {"seconds", "questions_per_second"}
    first, second = (
        {k: v for k, v in json.loads(out).items() if k not in timing}
        for out in (from_run, from_merged)
    )
    assert first == second


def test_the_peft_export_is_loaded_by_peft(
    call: Call, run: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    import transformers
    from peft import PeftModel

    from loraqa.answer.load import load_model

    out = tmp_path / "adapter"
    assert call("export", run, "--format", "peft", "--out", out)[0] == 0
    ids = torch.arange(1, 30)[None]
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, out)(ids).logits
        ours = load_model(run).model(ids).logits
    assert_near(ours, theirs, 1e-5)


def test_inspect_shows_tokens_and_counts(call: Call, tiny_folder: Path, data: Path) -> None:
    status, out, _ = call("inspect", "--model", tiny_folder, "--data", data, "-n", 1)
    assert status == 0
    assert "<|endoftext|>" in out
    assert "tokens as trees" in out


def test_questions_without_an_answer_are_told_before_the_training(
    call: Call, tiny_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        "context,question,answer\n"
        "The mill is old.,What is old?,The mill\n"
        "The mill is old.,Who built it?,\n"
        "The mill is old.,How old is it?, \n"
        "A mill and a barn.,What stands here?,barn\n"
    )
    told = f"2 of 4 questions of {path} have no answer (the first: line 3)"
    status, out, _ = call("inspect", "--model", tiny_folder, "--data", path, "-n", 0)
    assert status == 0
    assert told.replace(" ", "") in "".join(out.split())
    arguments = ["--dry-run", "--model", tiny_folder, "--train", path]
    status, _, err = call("train", *arguments)
    assert status == 0
    assert err.count(f'{told}, so the run learns to say "no answer"') == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["score", "nowhere.json", "--data", "DATA"], "nowhere.json"),
        (["evaluate", "RUN", "--data", "nowhere.json"], "nowhere.json"),
        (["calibrate", "RUN", "--data", "nowhere.json"], "nowhere.json"),
        (["evaluate", "RUN", "--data", "DATA", "--strategy", "best"], "top-p"),
        (["evaluate", "RUN", "--data", "DATA", "--strategy", "gredy"], "did you mean greedy?"),
        (["compare", "RUN", "--data", "DATA", "--strategies", "span,bean:4"], "did you mean beam?"),
        (
            ["ask", "RUN", "Who?", "--context-file", "DATA", "--without", "grouped-row"],
            "grouped-rows?",
        ),
        (["evaluate", "/nowhere", "--data", "DATA"], "/nowhere"),
        (["ask", "RUN", "--context-file", "nowhere.txt", "Who?"], "nowhere.txt"),
        (["analyze", "TINY"], "no adapter"),
        (
            ["ask", "TINY", "Who?", "--context-file", "DATA", "--base", "TINY"],
            "so it has no other base",
        ),
        (["evaluate", "TINY", "--data", "DATA", "--base", "TINY"], "so it has no other base"),
        (["compare", "TINY", "--data", "DATA", "--base", "TINY"], "so it has no other base"),
        (
            ["answer", "TINY", "--data", "DATA", "--out", "x", "--base", "TINY"],
            "so it has no other base",
        ),
        (["serve", "TINY", "--base", "TINY"], "so it has no other base"),
        (["export", "RUN", "--out", "RUN"], "exists already"),
        (["train", "--out", "x", "--set", "lora.rnak=8"], "lora.rank"),
        (["train", "nowhere.yaml", "--out", "x"], "nowhere.yaml"),
        (["train", "--out", "nowhere", "--resume"], "no run to resume in nowhere"),
        (["train", "--model", "", "--train", "DATA", "--out", "x"], "name is empty"),
        (["analyze", "nowhere"], "no folder nowhere"),
        (["ask", "./nowhere", "--context-file", "DATA", "Who?"], "no folder nowhere"),
        (["inspect", "--model", "TINY", "--data", "DATA", "--template", "x"], "template"),
    ],
)
def test_an_error_is_one_sentence(
    call: Call, run: Path, data: Path, tiny_folder: Path, arguments: list[str], says: str
) -> None:
    places = {"RUN": run, "DATA": data, "TINY": tiny_folder}
    status, out, error = call(*(places.get(word, word) for word in arguments))
    assert status == 2
    assert out == ""
    assert says in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["ask", "Who?", "RUN", "--context-file", "DATA"],
            "The question 'RUN' is a folder, but 'Who?'",
        ),
        (["ask", "DATA", "Who?", "--context-file", "RUN"], "DATA is a file and RUN a folder;"),
        (["ask", "RUN", "DATA", "--context-file", "Who?"], "'DATA' is a file, but --context-file"),
        (["ask", "RUN", "Who?" * 9999, "--context-file", "gone"], "gone does not exist"),
        (["evaluate", "DATA", "--data", "RUN"], "DATA is a file and RUN a folder;"),
        (["calibrate", "DATA", "--data", "RUN"], "DATA is a file and RUN a folder;"),
        (["compare", "DATA", "--data", "RUN"], "DATA is a file and RUN a folder;"),
        (["evaluate", "RUN", "--data", "DATA", "--out", "DATA"], "--out DATA is the data file"),
        (["score", "DATA", "--data", "DATA"], "DATA holds questions;"),
        (["train", "DATA", "--model", "TINY", "--out", "x"], "DATA holds no settings but data;"),
        (
            ["train", "TINY", "--train", "DATA", "--out", "x"],
            "TINY is a folder, not a settings file",
        ),
        (["train", "--train", "DATA", "--out", "x"], "give it with --model,"),
        (["train", "--model", "TINY", "--out", "x"], "give it with --train,"),
        (
            ["train", "--model", "TINY", "--train", "DATA", "--out", "DATA"],
            "DATA is a file; name a",
        ),
        (["compare", "RUN", "--data", "DATA", "--out", "DATA"], "Nothing can be written into DATA"),
        (["demo", "--out", "DATA"], "DATA exists and is no earlier demo"),
        (["evaluate", "RUN", "--data", "BAD"], "BAD has 1 problem:"),
        (["compare", "RUN", "--data", "BAD"], "BAD has 1 problem:"),
        (["inspect", "--model", "TINY", "--data", "BAD"], "BAD has 1 problem:"),
        (["export", "RUN", "--out", "TINY"], "TINY exists already;"),
        (["export", "RUN", "--out", "new", "--base", "gone/"], "There is no folder gone/;"),
        (["evaluate", "RUN", "--data", "DATA", "--base", "DATA"], "DATA is a file, not a model's"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_named_before_anything_heavy_is_imported(
    call_apart: CallApart,
    tiny_folder: Path,
    data: Path,
    run: Path,
    tmp_path: Path,
    arguments: list[str],
    says: str,
) -> None:
    bad = Passage(TOWN, (Question("bad", "", (Answer(TOWN, 0),)),))
    write_official(tmp_path / "bad.json", [bad], "1.1")
    places = {"TINY": tiny_folder, "DATA": data, "RUN": run, "BAD": tmp_path / "bad.json"}
    words = [str(places.get(word, word)) for word in arguments]
    status, out, error, heavy = call_apart(words)
    assert (status, out, heavy) == (2, "", [])
    for name, path in places.items():
        says = says.replace(name, str(path))
    assert says in error
    assert len(error) < 1000


# A program that runs command lines, each in a fork of itself in which nothing else was imported.
IN_FORKS = """
import json, os, sys, traceback
from loraqa.cli import main

told = os.dup(1)
for line in sys.stdin:
    words, environment, files = json.loads(line)
    if os.fork() == 0:
        for stream, path in zip((1, 2), files):
            os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
        os.environ.update(environment)
        sys.argv = ["loraqa", *words]
        status = None
        try:
            main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        heavy = [name for name in ("torch", "transformers", "matplotlib") if name in sys.modules]
        os.write(told, json.dumps([status, heavy]).encode() + b"\\n")
        os._exit(0)
    if os.wait()[1]:
        os.write(told, b"[\\"killed\\", []]\\n")
"""


@pytest.fixture(scope="module")
def call_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CallApart]:
    """Run a command line in a new process.

    Return exit status, output, errors, and which of the heavy libraries were imported.
    """
    out, error = (tmp_path_factory.mktemp("streams") / name for name in ("out", "error"))
    command = [sys.executable, "-c", IN_FORKS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(words: list[str], **environment: str) -> tuple[int, str, str, list[str]]:
            asked = [words, environment, [str(out), str(error)]]
            print(json.dumps(asked), file=process.stdin)
            status, heavy = json.loads(process.stdout.readline())
            return status, out.read_text(), error.read_text(), heavy

        yield call
        process.stdin.close()


def test_the_version_is_the_packages(call: Call) -> None:
    assert call("--version") == (0, f"loraqa {version('loraqa')}\n", "")


def test_help_shows_flags_without_a_value(call: Call) -> None:
    for command in ("train", "evaluate", "compare", "demo"):
        status, text, _ = call(command, "--help")
        assert status == 0
        assert "bool" not in text
    assert "..." not in call("--help")[1].partition("Commands:")[2]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["loraqa", "ev"], "evaluate\n"),
        (["loraqa", "evaluate", "--strat"], "--strategy\n"),
        (["loraqa", "train", "--on-bad", ""], "stop\nskip\n"),
    ],
)
def test_the_shell_completes(typed: list[str], offered: str) -> None:
    environment = os.environ | {
        "_LORAQA_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    code = "import sys; sys.argv = ['loraqa']; from loraqa.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == offered


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a model or data are loaded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work was begun that was bound to fail")

    monkeypatch.setattr("loraqa.answer.load.load_base", refuse)
    monkeypatch.setattr("loraqa.finetuning.ready.read_passages", refuse)
    monkeypatch.setattr("loraqa.squad.read_passages", refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "RUN", "--data", "DATA", "--out", "RUN"],
        ["evaluate", "RUN", "--data", "DATA", "--out", "DATA/x"],
        ["compare", "RUN", "--data", "DATA", "--out", "DATA/x"],
        ["analyze", "RUN", "--out", "DATA"],
        ["analyze", "RUN", "--out", "DATA/x"],
        ["export", "RUN", "--out", "DATA/x"],
        ["train", "--model", "TINY", "--train", "DATA", "--out", "DATA/x"],
    ],
    ids=" ".join,
)
def test_an_unwritable_place_is_reported_before_the_work(
    call: Call, run: Path, data: Path, tiny_folder: Path, arguments: list[str]
) -> None:
    places = {"RUN": run, "DATA": data, "TINY": tiny_folder, "DATA/x": data / "x"}
    status, _, error = call(*(places.get(word, word) for word in arguments))
    assert status == 2
    assert str(run if arguments[-1] == "RUN" else data) in error
    assert "; name a" in error


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["evaluate", "calibrate", "compare"])
@pytest.mark.parametrize("source", ["./nowhere", "runs/nowhere"])
def test_a_missing_run_is_reported_before_data_are_read(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: str, source: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, _, error = call(command, source, "--data", "rajpurkar/squad")
    assert status == 2
    assert f"no folder {Path(source)}" in error


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("context", "question"), [("\ufeff", "Who?"), (TOWN, " ")])
def test_blank_texts_are_refused_before_the_model_is_loaded(
    call: Call, run: Path, tmp_path: Path, context: str, question: str
) -> None:
    (tmp_path / "town.txt").write_text(context)
    status, _, error = call("ask", run, "--context-file", tmp_path / "town.txt", question)
    assert status == 2
    assert "is blank" in error


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--model", "{tmp}/gone", "--train", "{data}", "--out", "{tmp}/run"],
        ["train", "--model", "{model}", "--train", "gone.json", "--out", "{tmp}/run"],
        [
            "train",
            "--model",
            "{model}",
            "--train",
            "~/town.json",
            "--dev",
            "gone",
            "--out",
            "{tmp}/run",
        ],
        ["train", "--model", "{model}", "--train", "{data}", "--out", "{tmp}"],
        [
            "train",
            "--model",
            "{model}",
            "--train",
            "{data}",
            "--set",
            "speed.without=gone",
            "--out",
            "{tmp}/run",
        ],
        ["inspect", "--model", "{tmp}/gone", "--data", "{data}"],
        ["evaluate", "{tmp}/gone", "--data", "{data}"],
        ["compare", "{model}", "--data", "gone.json"],
        ["evaluate", "{model}", "--data", "{data}", "--strategy", "gone"],
        ["compare", "{model}", "--data", "{data}", "--strategies", "greedy,gone"],
        ["ask", "{model}", "--context-file", "{data}", "Who?", "--strategy", "gone"],
        ["ask", "{model}", "--context-file", "gone.txt", "Who?"],
        ["serve", "{tmp}/gone"],
        ["analyze", "{tmp}/gone"],
        ["export", "{tmp}/gone", "--out", "{tmp}/new"],
    ],
    ids=lambda command: f"{command[0]} {command[1].strip('-')}",
)
def test_wrong_arguments_are_reported_before_pytorch_is_imported(
    call_apart: CallApart, tiny_folder: Path, data: Path, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "not-empty").touch()
    places = {"model": tiny_folder, "data": data, "tmp": tmp_path}
    words = [word.format_map(places) for word in command]
    status, out, error, heavy = call_apart(words, HOME=str(data.parent))
    assert (status, out, heavy) == (2, "", [])
    assert error.count("\n") == 1
    assert "gone" in error or f"{tmp_path} is not empty and holds no run" in error


def test_on_bad_skip_leaves_out_bad_questions(
    call: Call, tiny_folder: Path, tmp_path: Path
) -> None:
    bad = Passage(f"{TOWN} Bad.", (Question("bad", "Who?", (Answer("Nobody", 0),)),))
    write_official(tmp_path / "bad.json", [*PASSAGES, bad], "1.1")
    out = tmp_path / "run"
    arguments = ["--model", tiny_folder, "--train", tmp_path / "bad.json", "--out", out]
    settings = ["--set", "optimisation.max_steps=1"]
    status, _, error = call("train", *arguments, *settings)
    assert status == 2
    assert "--on-bad skip" in error
    assert call("train", *arguments, *settings, "--on-bad", "skip")[0] == 0
    assert "on_bad: skip" in (out / "settings.yaml").read_text()


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_messages_about_long_ids_are_bounded(call: Call, tmp_path: Path, on_bad: str) -> None:
    long = Passage(TOWN, (Question("x" * 400_000, "", (Answer("Nobody", 0),)),))
    write_official(tmp_path / "long.json", [*PASSAGES, long], "1.1")
    (tmp_path / "predictions.json").write_text(json.dumps({"y" * 400_000: "Ruth Olen"}))
    words = ("score", tmp_path / "predictions.json", "--data", tmp_path / "long.json")
    status, _, error = call(*words, "--on-bad", on_bad)
    assert status == (2 if on_bad == "stop" else 0)
    assert "problem" in error
    assert len(error) < 10_000


def test_questions_and_answers_that_are_too_long_are_refused(
    call: Call, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "town.txt").write_text(TOWN)
    ask = ("ask", run, "--context-file", tmp_path / "town.txt")
    status, _, error = call(*ask, "Who?", "--max-answer-tokens", 600)
    assert status == 2
    assert "lower max_answer_tokens." in error
    status, _, error = call(*ask, "Who built the mill? " * 100)
    assert status == 2
    assert "The question 'Who built the mill? Who built" in error
    assert error.endswith("; shorten the question.\n")


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Replace standard input. As in a C locale, wrong UTF-8 becomes lone surrogates."""
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", stream)


@pytest.mark.parametrize("piped", [False, True])
def test_a_context_that_is_not_utf8_is_refused(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool
) -> None:
    context = tmp_path / "town.bin"
    context.write_bytes(b"\xff\xfe\x00")
    standard_input(monkeypatch, context.read_bytes())
    status, _, error = call("ask", run, "--context-file", "-" if piped else context, "Who?")
    assert status == 2
    assert f"{'standard input' if piped else context} is not UTF-8" in error


@pytest.mark.parametrize("piped", [False, True])
def test_offsets_count_the_characters_of_the_file(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool
) -> None:
    """The file has Windows line ends and a byte order mark, which is not a character."""
    context = tmp_path / "town.txt"
    text = "\r\n\r\n\r\n" + TOWN.replace(" ", "\r\n")
    context.write_bytes(text.encode("utf-8-sig"))
    standard_input(monkeypatch, context.read_bytes())
    place = "-" if piped else context
    options = ("--strategy", "span", "--json")
    _, out, _ = call("ask", run, "--context-file", place, "Who built the mill?", *options)
    (answer,) = json.loads(out)["answers"]
    assert text[answer["start"] : answer["end"]] == answer["text"] != ""
    assert answer["start"] > 0


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """Use the signal handlers that Python starts with."""
    before = {number: signal.getsignal(number) for number in (SIGINT, SIGTERM)}
    signal.signal(SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
@pytest.mark.parametrize("when", ["ready.choose_runner", "recipe.environment"])
def test_a_training_stopped_before_its_first_step_leaves_nothing(
    call: Call,
    data: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    when: str,
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(f"loraqa.finetuning.{when}", lambda *_, **__: signal.raise_signal(number))
    status, out, error = call(
        "train", "--model", tiny_folder, "--train", data, "--out", tmp_path / "run"
    )
    assert (status, out) == (128 + number, "")
    *others, told = error.splitlines()
    assert all(line.startswith("loraqa: ") for line in others)
    assert told == (f"loraqa: The training has not begun; nothing is kept in {tmp_path / 'run'}.")
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / "temporary").iterdir()) == []


def stop_in_batch(number: int, batch: int) -> None:
    """Answer few questions at once, and send this process a signal in the given batch."""
    answers, done = Reader._read, 0

    def stopping(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == batch:
            os.kill(os.getpid(), number)
        return answers(*arguments)

    Reader._read = stopping  # type: ignore[method-assign]
    loraqa.reader.tokens_at_once = lambda _: 250  # type: ignore[attr-defined]


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `stop_in_batch`, and answer few questions at once from the start."""
    monkeypatch.setattr(Reader, "_read", Reader._read)
    monkeypatch.setattr("loraqa.reader.tokens_at_once", lambda _: 250)


def without_seconds(value: Any) -> Any:
    """Return JSON without the figures that say how long it took."""
    if isinstance(value, list):
        return [without_seconds(item) for item in value]
    if isinstance(value, dict):
        timing = {"seconds", "questions_per_second"}
        return {key: without_seconds(item) for key, item in value.items() if key not in timing}
    return value


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize(
    ("command", "number"), [("evaluate", SIGINT), ("evaluate --out", SIGTERM), ("compare", SIGINT)]
)
def test_a_stopped_command_goes_on_to_the_same_result(
    call: Call, run: Path, data: Path, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    out = tmp_path / "new" / "result"
    options: list[object] = [run, "--data", data, "--json", "--max-answer-tokens", "9"]
    options += ["--out", out] if command != "evaluate" else []
    options += ["--strategies", "greedy,top-k,span"] if command == "compare" else []
    words = [command.split()[0], *options]
    expected, files = call(*words), contents(tmp_path)
    shutil.rmtree(tmp_path / "new", ignore_errors=True)

    stop_in_batch(number, 4)
    status, printed, error = call(*words)
    assert (status, printed) == (128 + number, "")
    assert "loraqa: The answers so far are kept in " in error
    (journal,) = [word for word in error.split() if word.endswith(".journal;")]
    place = {"evaluate --out": f"{out}.journal;", "compare": f"{out}/comparison.json.journal;"}
    assert journal == place.get(command, journal)

    stop_in_batch(number, 10_000)
    result = call(*words)
    assert f"loraqa: Going on with the answers in {journal[:-1]}.\n" in result[2]
    assert without_seconds(json.loads(result[1])) == without_seconds(json.loads(expected[1]))
    assert contents(tmp_path) == files
    assert not Path(journal[:-1]).exists()


def contents(folder: Path) -> dict[str, Any]:
    """Return the files of a folder, JSON without timing, and pictures and tables by name alone."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: without_seconds(json.loads(path.read_text()))
        for name, path in files.items()
        if path.suffix in (".json", "")
    } | {name: None for name, path in files.items() if path.suffix not in (".json", "")}


@pytest.mark.usefixtures("few_at_once")
def test_a_killed_evaluation_goes_on_to_the_same_predictions(
    call: Call, run: Path, data: Path, tmp_path: Path
) -> None:
    options = ["evaluate", run, "--data", data, "--out"]
    assert call(*options, tmp_path / "whole.json")[0] == 0
    words = ["loraqa", *map(str, options), str(tmp_path / "killed.json")]
    code = (
        "import sys, loraqa.cli, tests.test_cli\n"
        "tests.test_cli.stop_in_batch(9, 4)\n"
        f"sys.argv = {words!r}\n"
        "loraqa.cli.main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    journal = tmp_path / "killed.json.journal"
    assert len(journal.read_text().splitlines()) == 3
    assert not (tmp_path / "killed.json").exists()
    journal.write_bytes(journal.read_bytes()[:-10])
    stop_in_batch(9, 10_000)
    assert call(*options, tmp_path / "killed.json")[0] == 0
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not journal.exists()


def test_ctrl_c_before_a_command_runs_shows_no_traceback(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraqa.cli.process.app", lambda **_: signal.raise_signal(SIGINT))
    assert call() == (130, "", "")


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_every_command_says_that_it_was_stopped(
    run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """It waits for its text at a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "text")
    words = ["ask", str(run), "--context-file", str(tmp_path / "text"), "Who?"]
    command = [sys.executable, "-m", "loraqa", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as it:
        # Opening waits until the command has opened the pipe to read.
        writing = os.open(tmp_path / "text", os.O_WRONLY)
        it.send_signal(number)
        assert it.communicate(timeout=60)[1] == f"loraqa: Stopped by {number.name}.\n"
        os.close(writing)
    assert it.returncode == 128 + number


def test_a_second_ctrl_c_does_not_interrupt_the_cleaning_up(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned = []

    def interrupted_twice(**_: object) -> None:
        try:
            signal.raise_signal(SIGINT)
        finally:
            signal.raise_signal(SIGINT)
            cleaned.append(True)

    monkeypatch.setattr("loraqa.cli.process.app", interrupted_twice)
    assert call() == (130, "", "")
    assert cleaned


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_stop_nothing(data: Path, tmp_path: Path, closed: str) -> None:
    (tmp_path / "answers.json").write_text("{}")
    words = [sys.executable, "-m", "loraqa", "score", tmp_path / "answers.json", "--json"]
    line = shlex.join(map(str, [*words, "--data", data]))
    done = subprocess.run(f"{line} {closed}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0
    assert (done.stdout != "") == (closed == "2>&-")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text("{}")
    words = [sys.executable, "-m", "loraqa", "score", tmp_path / "answers.json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*words, "--data", data], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "loraqa: The output cannot be written (No space left on device); free some space there."
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evaluate", "--nonsense"), "No such option: --nonsense"),
        (("train", "--epochs", "3"), "--epochs; give --set optimisation.epochs=VALUE instead"),
        (("train", "--lora_alpha=3"), "give --set lora.alpha=VALUE instead"),
        (("train", "--max-seq-length", "9"), "give --set prompt.max_length=VALUE instead"),
        (("train", "--lora.rank", "8"), "--lora.rank; give --set lora.rank=VALUE instead"),
        (("train", "--base", "gpt2"), "No such option: --base; give --model instead"),
        (("train", "--every", "3"), "No such option: --every"),
        (("sweep", "ranges.yaml", "--epochs", "3"), "give --set optimisation.epochs=VALUE instead"),
        (("ask", "--epochs", "3"), "No such option: --epochs"),
        (("ask", "run", "Who?", "--context-file", "a", "--answers", "0"), "'--answers'"),
        (("ask", "run", "Who?"), "--context-file"),
        (("nonsense",), "nonsense"),
    ],
)
def test_wrong_flags_are_told_in_one_sentence(
    call: Call, words: tuple[str, ...], told: str
) -> None:
    status, printed, error = call(*words)
    assert (status, printed) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith("loraqa: ")
    assert told in line
    command = "loraqa" if len(words) == 1 else f"loraqa {words[0]}"
    assert line.endswith(f"; `{command} --help` tells what can be given.")


def test_help_is_shown_without_arguments(call: Call) -> None:
    assert "Usage: loraqa" in "".join(call()[1:])
    assert call("--help")[0] == call("ask", "--help")[0] == 0


def test_golds_outside_the_context_count_and_made_ids_are_refused_by_score(
    call: Call, tmp_path: Path
) -> None:
    row = {"context": TOWN, "question": "Who?", "answers": ["Nobody at all"]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row | {"id": 1}))
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    (tmp_path / "predictions.json").write_text(json.dumps({"1": "nobody at all"}))
    words = ("score", tmp_path / "predictions.json", "--json", "--data")
    status, out, _ = call(*words, tmp_path / "data.jsonl")
    assert (status, json.loads(out)["exact_match"]) == (0, 100.0)
    status, _, error = call(*words, tmp_path / "own.jsonl")
    assert status == 2
    assert "1 question without an id" in error


@pytest.mark.parametrize(
    ("load", "chosen", "policy"),
    [(0.1, None, None), (1.0, None, "passive"), (1.0, "active", "active")],
)
def test_threads_sleep_while_they_wait_where_other_processes_are_busy(
    load: float, chosen: str | None, policy: str | None, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is as before afterwards.
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert call("--version")[0] == 0
    assert os.environ.get("OMP_WAIT_POLICY") == policy
