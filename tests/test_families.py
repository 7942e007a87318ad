"""Every command and the Python front door, on a GPT-2-like, a Llama-like and a GGUF model."""

import csv
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fastapi.testclient import TestClient
from peft import PeftModel
from PIL import Image

from loraqa import Reader, finetune
from loraqa.answer.evaluate import evaluate
from loraqa.answer.load import load_model
from loraqa.serve.app import Served, create_app
from loraqa.squad import Passage, Question, read_passages, score, write_official
from loraqa.train.settings import load_settings
from tests.conftest import TOWN, Call, assert_near, tiny_model, town_passages
from tests.model.test_session import rows_of
from tests.model.tiny_gguf import write_gguf

pytestmark = pytest.mark.usefixtures("without_plots")

PASSAGES = town_passages(4)
# An odd number of kinds of layers in Llama's blocks (seven), an even one in GPT-2's (four).
KINDS = {"gpt2": 4, "llama": 7, "llama in GGUF": 7}
SETTINGS = [
    "model.dtype=float32",
    "optimisation.max_steps=4",
    "optimisation.questions_per_step=4",
    "optimisation.epochs=9",
    "optimisation.learning_rate=1e-2",
    "checkpoint.every=2",
    "prompt.stride=16",
    "evaluation.max_answer_tokens=8",
]


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Nothing but the loading of a base knows that it is a GGUF file.
not_in_gguf = pytest.mark.parametrize("family", ["gpt2", "llama"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("base")
    if family == "llama in GGUF":
        return write_gguf(folder / "tiny.gguf", tiny_model("llama"), tiny_tokenizer)
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "town.json"
    write_official(path, PASSAGES, "1.1")
    return path


@pytest.fixture(scope="module")
def run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    sources = [f"model.source={base}", f"data.train={data}", f"data.dev={data}"]
    finetune(load_settings(overrides=[*SETTINGS, *sources]), out)
    return out


def loaded_by_transformers(base: Path) -> Any:
    where = {"gguf_file": base.name} if base.is_file() else {}
    folder = base.parent if base.is_file() else base
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **where)


def adapter_of(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def goes_on(call: Call, out: Path) -> bytes:
    """Resume a finished run as if it had been killed after its first checkpoint."""
    shutil.rmtree(out / "adapter")
    shutil.rmtree(out / "checkpoints" / "step-000004")
    status, _, error = call("train", "--out", out, "--resume")
    assert status == 0, error
    return adapter_of(out)


def evaluated_f1(call: Call, out: Path, data: Path) -> float:
    status, printed, error = call("evaluate", out, "--data", data, "--json")
    assert status == 0, error
    f1: float = json.loads(printed)["f1"]
    return f1


def test_training_and_resuming_give_the_same_adapter(
    call: Call, base: Path, data: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ("train", "--model", base, "--train", data, "--dev", data, "--out", out, *sets)
    status, printed, error = call(*words)
    assert (status, printed) == (0, ""), error
    assert adapter_of(out) == adapter_of(run)
    assert goes_on(call, out) == adapter_of(run)


@not_in_gguf
@pytest.mark.parametrize("variant", ["lora.initialisation=pissa", "lora.dora=true"])
def test_a_variant_gives_an_adapter_of_the_base_resumed_or_not(
    variant: str, call: Call, base: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [*SETTINGS, variant, "lora.rank=4"]
    sources = [f"model.source={base}", f"data.train={data}", f"data.dev={data}"]
    result = finetune(load_settings(overrides=[*words, *sources]), out)
    learned = adapter_of(out)
    assert result.after is not None
    assert evaluated_f1(call, out, data) == pytest.approx(result.after.f1)
    assert goes_on(call, out) == learned


@not_in_gguf
def test_an_activated_lora_goes_on_answers_and_is_read_by_peft(
    call: Call, base: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [*SETTINGS, "lora.activated=true", "lora.rank=4"]
    sources = [f"model.source={base}", f"data.train={data}", f"data.dev={data}"]
    result = finetune(load_settings(overrides=[*words, *sources]), out)
    learned = adapter_of(out)
    assert result.after is not None
    assert evaluated_f1(call, out, data) == pytest.approx(result.after.f1)

    reader = Reader.load(out)
    trees = reader.encoder.encode_prompts(PASSAGES, 8).trees
    _, logits = reader.runner.prefill(trees)
    peft = PeftModel.from_pretrained(loaded_by_transformers(base), out / "adapter")
    assert peft.peft_config["default"].alora_invocation_tokens
    with torch.no_grad():
        expected = [peft(input_ids=torch.tensor([ids])).logits[0, -1] for ids in rows_of(trees)]
    assert_near(logits, torch.stack(expected), 1e-4)

    words = ("export", out, "--format", "merged", "--out", tmp_path / "merged")
    status, _, error = call(*words)
    assert (status, error.count("--format peft")) == (2, 1)
    assert not (tmp_path / "merged").exists()

    assert goes_on(call, out) == learned


@not_in_gguf
def test_evaluating_gives_the_official_scores_of_the_reader(
    call: Call, data: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "predictions.json"
    status, printed, error = call("evaluate", run, "--data", data, "--out", out, "--json")
    assert status == 0, error
    dataset = read_passages(data)
    predictions = json.loads(out.read_text())
    assert predictions == evaluate(Reader.load(run), dataset).predictions
    told, official = json.loads(printed), score(predictions, dataset).to_json()
    assert {name: told[name] for name in official} == official
    status, printed, _ = call("score", out, "--data", data, "--json")
    assert (status, json.loads(printed)) == (0, official)


@not_in_gguf
def test_the_threshold_is_chosen_on_the_command_line(call: Call, run: Path, tmp_path: Path) -> None:
    passage = Passage(TOWN, (Question("none", "Why?"),))
    write_official(tmp_path / "v2.json", [passage], "2.0")
    words = ("evaluate", run, "--data", tmp_path / "v2.json", "--json")
    for threshold, right in ((0, 100.0), (1, 0.0)):
        out = tmp_path / f"{threshold}.json"
        chosen = ("--no-answer-threshold", threshold, "--out", out)
        status, printed, error = call(*words, *chosen)
        assert status == 0, error
        told = json.loads(printed)
        # The best threshold is the same, whichever was chosen.
        assert (told["exact_match"], told["best_exact"]) == (right, 100.0)
        predictions = json.loads(out.read_text())
        assert (predictions["none"] == "") == (right == 100.0)
        probabilities = out.with_suffix(".na_prob.json")
        assert 0 < json.loads(probabilities.read_text())["none"] < 1
        status, printed, error = call(
            *("score", out, "--data", tmp_path / "v2.json", "--json"),
            *("--no-answer-probabilities", probabilities),
        )
        assert (status, json.loads(printed)["exact_match"]) == (0, right), error


@not_in_gguf
def test_long_texts_are_read_in_the_windows_that_match_a_question(
    call: Call, run: Path, tmp_path: Path
) -> None:
    filler = " ".join(f"Nothing happened in year {n}, or hardly anything." for n in range(300))
    long = f"{filler} {TOWN} {filler}"
    (tmp_path / "long.txt").write_text(long)
    words = ("ask", run, "Who built the mill?", "--context-file", tmp_path / "long.txt", "--json")
    status, printed, error = call(*words, "--windows", 1)
    assert status == 0, error
    (answer,) = json.loads(printed)["answers"]
    assert abs(answer["start"] - long.index(TOWN)) < 2000
    assert "for each question only the window that matches it best" in error
    assert "answering 1 question" in error
    status, printed, error = call(*words, "--windows", "all")
    assert status == 0, error
    reader = replace(Reader.load(run), most_windows=None)
    (expected,) = reader.answer(long, ["Who built the mill?"])
    assert json.loads(printed)["answers"][0]["text"] == expected.text
    for windows in ("0", "-1", "many", "1.5"):
        status, _, error = call(*words, "--windows", windows)
        assert status == 2
        assert "is neither a number from 1 on nor all" in error


@not_in_gguf
@pytest.mark.parametrize("command", ["ask", "evaluate", "compare", "answer", "analyze"])
def test_dtype_device_and_batches_are_the_users(
    command: str,
    call: Call,
    run: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "town.txt").write_text(TOWN)
    table = tmp_path / "in.jsonl"
    table.write_text(json.dumps({"context": TOWN, "question": "Who built the mill?"}) + "\n")
    out = ("--out", tmp_path / "out.jsonl")
    words = {
        "ask": ("Who?", "--context-file", tmp_path / "town.txt"),
        "evaluate": ("--data", data, *out),
        "compare": ("--data", data, "--strategies", "greedy", "--samples", 1, *out),
        "answer": ("--data", table, *out),
        "analyze": ("--data", data, "--questions", 1, *out),
    }[command]
    devices, used, choose = [], set(), Reader._choose

    def named(device: str) -> torch.device:
        devices.append(device)
        return torch.device("cpu")

    def watched(reader: Reader, *arguments: Any) -> Any:
        used.add((reader.runner.model.dtype, reader.tokens_per_batch))
        return choose(reader, *arguments)

    monkeypatch.setattr("loraqa.model.load.choose_device", named)
    monkeypatch.setattr(Reader, "_choose", watched)
    chosen = ("--device", "cuda:7", "--dtype", "bfloat16", "--tokens-per-batch", 300)
    status, _, error = call(command, run, *words, *chosen)
    assert status == 0, error
    assert used == {(torch.bfloat16, 300)}
    # An adapter is measured on the processor before its answers are scored.
    assert devices == [*(["cpu"] if command == "analyze" else []), "cuda:7"]


@not_in_gguf
@pytest.mark.parametrize("several", [False, True])
def test_a_server_computes_as_the_user_says_and_in_small_batches(
    several: bool, call: Call, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = []

    def watched(reader: Reader, _: Served, named: Any, **__: Any) -> None:
        readers.append(reader)
        assert bool(named) == several
        for each in named.values() if named else ():
            assert each.tokens_per_batch == reader.tokens_per_batch

    monkeypatch.setattr("loraqa.serve.app.create_app", watched)
    monkeypatch.setattr("loraqa.serve.server.run", lambda *_: None)
    words = ("serve", run, "--port", 0, *(("--adapter", f"other={run}") if several else ()))
    for chosen in ((), ("--dtype", "bfloat16", "--tokens-per-batch", 300)):
        status, _, error = call(*words, *chosen)
        assert status == 0, error
    assert "The device 'abacus' cannot be used" in call(*words, "--device", "abacus")[2]
    first, second = readers
    assert (first.runner.model.dtype, first.tokens_per_batch) == (torch.float32, 4096)
    assert (second.runner.model.dtype, second.tokens_per_batch) == (torch.bfloat16, 300)


@not_in_gguf
def test_comparing_answers_by_every_kind_of_strategy(
    call: Call, data: Path, run: Path, tmp_path: Path
) -> None:
    names = ["greedy", "top-p:0.9", "beam:2", "span"]
    words = ("--strategies", ",".join(names), "--samples", 2, "--out", tmp_path / "c")
    status, printed, error = call("compare", run, "--data", data, *words)
    assert status == 0, error
    rows = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [(row["strategy"], row["questions"]) for row in rows] == [(name, 8) for name in names]
    assert rows[-1]["found"] == 1
    assert all(name in printed for name in names)


def test_asking_and_serving_give_the_answers_of_the_reader(
    call: Call, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "town.txt").write_text(TOWN)
    questions = ["Who built the mill?", "When?"]
    reader = Reader.load(run)
    expected = [asdict(answer) for answer in reader.answer(TOWN, questions, "span")]
    assert [TOWN[a["start"] : a["end"]] for a in expected] == [a["text"] for a in expected]
    words = ("--context-file", tmp_path / "town.txt", "--strategy", "span")
    status, printed, error = call("ask", run, *questions, *words, "--json")
    # A text has no pages.
    paged = [answer | {"page": None} for answer in expected]
    assert (status, json.loads(printed)["answers"]) == (0, paged), error
    assert expected[0]["text"] in " ".join(call("ask", run, *questions, *words)[1].split())
    best = [[asdict(a) for a in some] for some in reader.candidates(TOWN, questions, 3, "span")]
    status, printed, error = call("ask", run, *questions, *words, "--answers", 3, "--json")
    paged = [[answer | {"page": None} for answer in some] for some in best]
    assert (status, json.loads(printed)["candidates"]) == (0, paged), error
    assert [len(answers) for answers in best] == [3, 3]
    printed = " ".join(call("ask", run, *questions, *words, "--answers", 3)[1].split())
    assert all(" ".join(answer["text"].split()) in printed for answer in best[0])
    with TestClient(create_app(reader, Served.describe(run, reader)), "http://localhost") as client:
        body = {"context": TOWN, "questions": questions, "strategy": "span"}
        assert client.post("/api/answer", json=body).json()["answers"] == expected
        assert client.get("/api/model").json()["adapter"] == str(run / "adapter")
        assert client.get("/").status_code == 200


@not_in_gguf
def test_answering_a_file_gives_the_answers_of_the_reader(
    call: Call, run: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "in.csv", tmp_path / "out.csv"
    data.write_text(f'context,question\n"{TOWN}",Who built the mill?\n"{TOWN}",When?\n')
    status, printed, error = call("answer", run, "--data", data, "--out", out, "--json")
    counts = {"rows": 2, "answered": 2, "no_answer": 0, "skipped": 0, "left_out": 0}
    assert (status, json.loads(printed)) == (0, counts), error
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = Reader.load(run).answer(TOWN, ["Who built the mill?", "When?"])
    assert [(row["answer"], int(row["start"]), int(row["end"])) for row in rows] == [
        (answer.text, answer.start, answer.end) for answer in expected
    ]
    status, _, error = call("answer", run, "--data", data, "--out", out)
    assert (status, error) == (
        2,
        f"loraqa: {out} exists already; name another place, or remove it.\n",
    )


@not_in_gguf
def test_analyzing_shows_every_adapted_matrix(
    call: Call, family: str, run: Path, data: Path
) -> None:
    words = ("--data", data, "--questions", 4, "--against", run / "checkpoints/step-000002/adapter")
    status, printed, error = call("analyze", run, *words)
    assert status == 0, error
    learned = json.loads((run / "analysis" / "analysis.json").read_text())
    assert len(learned["updates"]) == 2 * KINDS[family]
    kinds = {re.sub(r".*?\.\d+\.", "", update["name"]) for update in learned["updates"]}
    assert len(kinds) == KINDS[family]
    assert [each["step"] for each in learned["checkpoints"]] == [2, 4]
    changes = [effect["value"] for effect in learned["effects"]["effects"]]
    assert kinds | {0, 1} <= set(changes)
    for picture in ("spectra", "by-layer", "layers", "growth", "against-1", "effects"):
        with Image.open(run / "analysis" / f"{picture}.png") as image:
            assert len(image.convert("RGB").getcolors(1_000_000)) > 10
    assert 'id="learned"' in (run / "report.html").read_text()
    assert all(kind in printed for kind in kinds)


def test_exports_compute_and_answer_as_the_run_does(
    call: Call, base: Path, data: Path, run: Path, tmp_path: Path
) -> None:
    for kind in ("peft", "merged"):
        status, _, error = call("export", run, "--format", kind, "--out", tmp_path / kind)
        assert status == 0, error
    ids = torch.arange(1, 30)[None]
    plain = loaded_by_transformers(base)
    with torch.no_grad():
        ours = load_model(run).model(ids).logits
        before = plain(ids).logits.clone()
        by_peft = PeftModel.from_pretrained(plain, tmp_path / "peft")(ids).logits
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert_near(ours, by_peft, 1e-5)
    assert_near(merged, by_peft, 1e-5)
    assert (before - by_peft).norm() > 0.01 * before.norm()

    dataset = read_passages(data)
    expected = evaluate(Reader.load(run), dataset).predictions
    for kind in ("peft", "merged"):
        assert evaluate(Reader.load(tmp_path / kind), dataset).predictions == expected


def test_inspecting_shows_the_input(call: Call, base: Path, data: Path) -> None:
    status, printed, error = call("inspect", "--model", base, "--data", data, "-n", 1)
    assert status == 0, error
    assert re.search(r"contexts +4", printed)
    assert re.search(r"questions +8", printed)
    assert "Who" in printed.replace("│", "")
