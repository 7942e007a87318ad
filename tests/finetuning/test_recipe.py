"""The recipe, end to end on a tiny model: runs are finished, stopped, killed and resumed."""

import html
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import peft
import pytest
import torch
from tests.conftest import COMPILES, assert_near, tiny_model
from tests.train.conftest import PASSAGES, scores
from transformers import AutoModelForCausalLM

from loraqa.adapter.evaluation import Evaluation
from loraqa.adapter.info import read_adapter_info
from loraqa.analysis.outcome import Outcome
from loraqa.answer.evaluate import evaluate
from loraqa.answer.span import _spans
from loraqa.answer.together import SharedScoring
from loraqa.errors import InputError
from loraqa.finetuning import FinetuneResult, finetune
from loraqa.finetuning.reading import longest_answer, usual_context
from loraqa.lora.adapter import load_adapter
from loraqa.model.load import load_base
from loraqa.prompt.encode import Encoded, EncodingCounts, PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import TWICE, Template
from loraqa.prompt.tree import Branch, Tree
from loraqa.reader import Reader
from loraqa.report.progress import training_progress
from loraqa.report.time_left import Work
from loraqa.speed import OF_COMMANDS, OF_MODELS, OF_PREPARATION
from loraqa.speed.start.process import preparing
from loraqa.squad import Answer, Passage, Question, write_official
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, SpeedSettings, load_settings

pytestmark = pytest.mark.usefixtures("without_plots")

# A program that runs the recipe and sends itself a signal right after a step.
STOPPED_AFTER = """
import os, sys
from pathlib import Path
from loraqa.errors import LoraqaError
from loraqa.finetuning import finetune
from loraqa.train.run import RunDirectory
from loraqa.train.settings import load_settings

settings, run, step, number = sys.argv[1:]
append = RunDirectory.append

def append_and_stop(self, record):
    append(self, record)
    if record["step"] == int(step) and record["kind"] == "train":
        os.kill(os.getpid(), int(number))

RunDirectory.append = append_and_stop
try:
    finetune(load_settings([Path(settings)]), Path(run))
except LoraqaError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


FILLER = " ".join(f"The mill ground {n} sacks of corn." for n in range(12))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.json and dev.json."""
    folder = tmp_path_factory.mktemp("data")
    write_official(folder / "train.json", PASSAGES, "1.1")
    write_official(folder / "dev.json", PASSAGES[:2], "1.1")
    return folder


@pytest.fixture(scope="module")
def chosen(tiny_folder: Path, data: Path) -> RunSettings:
    """Settings of eight steps, two to an epoch, with an evaluation every three steps."""
    return choose(
        tiny_folder,
        data / "train.json",
        f"data.dev={data / 'dev.json'}",
        "lora.dropout=0.1",
        "evaluation.every=3",
    )


def choose(model: Path, train: Path, *overrides: str) -> RunSettings:
    return load_settings(
        overrides=[
            f"model.source={model}",
            "model.dtype=float32",
            f"data.train={train}",
            "data.negatives=0",
            "lora.rank=4",
            "optimisation.epochs=4",
            "optimisation.questions_per_step=4",
            "optimisation.tokens_per_batch=120",
            "optimisation.learning_rate=1e-2",
            "evaluation.max_answer_tokens=12",
            "checkpoint.every=3",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def finished(
    chosen: RunSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FinetuneResult]:
    """A run that was not interrupted."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    return run, finetune(chosen, run, command="loraqa train --out finished")


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in RunDirectory(run).metrics() if r["kind"] == "train"]


def accelerations(run: Path) -> list[str]:
    """Return the accelerations that a run has recorded."""
    used: list[str] = read(run / "environment.json")["accelerations"]
    return used


def test_a_run_writes_all_its_files(
    finished: tuple[Path, FinetuneResult], chosen: RunSettings
) -> None:
    run, result = finished
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    adapter = {"adapter_config.json", "adapter_model.safetensors", "loraqa.json", "README.md"}
    expected = {f"adapter/{name}" for name in adapter}
    expected |= {"settings.yaml", "environment.json", "data.json", "metrics.jsonl"}
    expected |= {"evaluation.json", "report.html", "report.json", "questions.csv"}
    assert {name for name in names if not name.startswith("checkpoints/")} == expected
    assert load_settings([run / "settings.yaml"]) == chosen
    assert result.steps == 8
    assert result.before is not None
    assert result.after is not None
    assert result.before.total == result.after.total == 5
    assert json.loads(json.dumps(result.to_json()))["after"]["f1"] == result.after.f1
    card = (run / "adapter" / "README.md").read_text()
    assert "loraqa train --out finished" in card
    # The dev data are two passages of the training data.
    assert "dev contexts are in the training data, too" in card
    told = read(run / "data.json")
    assert (told["train"]["questions"], told["train"]["contexts"]) == (10, 4)
    assert told["train"]["encoding"]["examples"] == 10
    assert told["dev"]["questions"] == 5


def test_the_report_shows_the_answers_to_the_dev_sample(
    finished: tuple[Path, FinetuneResult],
) -> None:
    run, result = finished
    outcome = Outcome.load(run)
    assert result.after is not None
    assert outcome.scores["exact_match"] == result.after.exact_match
    assert outcome.scores["f1"] == pytest.approx(result.after.f1)
    assert len(outcome.questions) == result.after.total
    page = (run / "report.html").read_text()
    assert outcome.questions[0].question in page


@pytest.mark.parametrize("other_data", [True, False])
def test_a_finished_run_that_is_resumed_keeps_an_evaluation_of_other_data(
    finished: tuple[Path, FinetuneResult], chosen: RunSettings, tmp_path: Path, other_data: bool
) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    outcome = Outcome.load(run)
    sha256 = "other" if other_data else outcome.data["sha256"]
    of_user = replace(outcome, command="mine", data={**outcome.data, "sha256": sha256})
    of_user.save(run)
    finetune(chosen, run, resume=True)
    assert (Outcome.load(run) == of_user) is other_data


def test_the_adapter_folder_alone_works_here_and_in_peft(
    finished: tuple[Path, FinetuneResult], tiny_folder: Path
) -> None:
    run, _ = finished
    answers = Reader.load(run / "adapter").answer("The mill is old.", ["What is old?"])
    assert len(answers) == 1
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(plain, run / "adapter").eval()
    ours, _ = load_base(tiny_folder, dtype="float32")
    load_adapter(ours, run / "adapter")
    ids = torch.arange(1, 30)[None]
    assert_near(ours(input_ids=ids).logits, adapted(input_ids=ids).logits, 1e-5)
    config = read(run / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(tiny_folder)


def test_scoring_computes_the_tokens_of_four_training_batches_at_once(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: set[int] = set()

    def watched(reader: Reader, *rest: Any, **named: Any) -> Any:
        budgets.add(reader.tokens_per_batch)
        return evaluate(reader, *rest, **named)

    monkeypatch.setattr("loraqa.finetuning.finish.evaluate", watched)
    finetune(chosen, tmp_path / "run")
    assert budgets == {4 * 120}


def test_the_time_left_is_that_of_all_the_work(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Work] = []

    def watched(work: Work, done: int) -> Any:
        told.append(work)
        return training_progress(work, done)

    monkeypatch.setattr("loraqa.finetuning.recipe.training_progress", watched)
    finetune(chosen, tmp_path / "run")
    (work,) = told
    records = RunDirectory(tmp_path / "run").metrics()
    steps = [record for record in records if record["kind"] == "train"]
    assert work.steps == len(steps)
    tokens = [step["seconds"] * step["tokens_per_second"] for step in steps if step["epoch"] <= 1]
    assert work.tokens_per_step == pytest.approx(sum(tokens) / len(tokens))
    assert list(work.scorings) == [r["step"] for r in records if r["kind"] == "evaluation"]


@pytest.mark.parametrize(
    ("number", "status", "newest"),
    [(signal.SIGTERM, 143, "step-000005"), (signal.SIGKILL, -9, "step-000003")],
)
def test_a_run_that_was_stopped_and_resumed_has_the_same_bits(
    finished: tuple[Path, FinetuneResult],
    chosen: RunSettings,
    tmp_path: Path,
    number: signal.Signals,
    status: int,
    newest: str,
) -> None:
    (tmp_path / "settings.yaml").write_text(chosen.to_yaml())
    run = tmp_path / "run"
    arguments = [tmp_path / "settings.yaml", run, "5", str(int(number))]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AFTER, *arguments], capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    assert ("--resume" in done.stderr) == (number == signal.SIGTERM)
    assert max(path.name for path in (run / "checkpoints").iterdir()) == newest
    assert not (run / "adapter").exists()
    result = finetune(load_settings([run / "settings.yaml"]), run, resume=True)
    assert weights(run) == weights(finished[0])
    assert result.after == finished[1].after
    metrics = RunDirectory(run).metrics()
    assert [r["step"] for r in metrics if r["kind"] == "train"] == list(range(1, 9))


@pytest.mark.parametrize(
    "name", ["settings.yaml", "data.json", "environment.json", "metrics.jsonl"]
)
def test_a_zeroed_file_of_a_run_stops_nothing_and_changes_no_bit(
    finished: tuple[Path, FinetuneResult],
    chosen: RunSettings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    # As if it had been killed after step 6.
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "step-000008")
    (run / name).write_bytes(bytes((run / name).stat().st_size))
    again = RunDirectory(run).choose_settings(None, {}, [], resume=True)
    assert again == chosen
    finetune(again, run, resume=True)
    assert weights(run) == weights(finished[0])
    assert any(name in message for message in caplog.messages)


def test_resuming_a_finished_run_changes_nothing(
    finished: tuple[Path, FinetuneResult], chosen: RunSettings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    assert finetune(chosen, run, resume=True).after == finished[1].after
    assert weights(run) == weights(finished[0])


def test_other_accelerations_on_resuming_are_reported(
    finished: tuple[Path, FinetuneResult],
    chosen: RunSettings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = accelerations(run)
    assert before
    assert set(before) <= set(OF_MODELS)
    assert ("compiled-gelu" in before) == (COMPILES and not torch.cuda.is_available())
    with caplog.at_level(logging.WARNING, logger="loraqa"):
        finetune(without(chosen, "all"), run, resume=True)
    assert caplog.messages[1:] == [
        f"The run began with accelerations {before} and goes on with []: its result may differ by "
        "rounding."
    ]
    # The dev data are two passages of the training data.
    assert caplog.messages[0].startswith("5 of 5 dev questions and 2 of 2 dev contexts are in the")


def without(settings: RunSettings, *names: str) -> RunSettings:
    """Return settings without these accelerations."""
    return settings.model_copy(update={"speed": SpeedSettings(without=names)})


@pytest.mark.parametrize("names", [(), *((name,) for name in OF_PREPARATION)], ids=str)
def test_accelerations_of_the_preparation_change_no_bit(
    finished: tuple[Path, FinetuneResult],
    chosen: RunSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "cache"))
    settings, run = without(chosen, *names), tmp_path / "run"
    with preparing(settings) as prepare:
        finetune(settings, run, prepare=prepare)
    assert weights(run) == weights(finished[0])
    assert accelerations(run) == accelerations(finished[0])


def test_all_leaves_out_accelerations_of_models_and_of_the_preparation(
    finished: tuple[Path, FinetuneResult], chosen: RunSettings, tmp_path: Path
) -> None:
    finetune(without(chosen, *OF_MODELS), tmp_path / "plain-model")
    finetune(without(chosen, "all"), tmp_path / "plain")
    assert weights(tmp_path / "plain") == weights(tmp_path / "plain-model")
    assert accelerations(tmp_path / "plain") == []
    assert losses(tmp_path / "plain") == pytest.approx(losses(finished[0]), rel=1e-4)


def _other_heads(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_head": 2 * config["n_head"]}))


def _other_merges(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "named"), [(_other_heads, "configuration"), (_other_merges, "tokenizer")]
)
def test_a_base_that_changed_is_named_on_resuming_and_on_answering(
    finished: tuple[Path, FinetuneResult],
    chosen: RunSettings,
    tiny_folder: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    named: str,
) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    moved = chosen.model_copy(
        update={"model": chosen.model.model_copy(update={"source": str(base)})}
    )
    finetune(moved, run, resume=True)
    Reader.load(run)
    change(base)
    with pytest.raises(InputError, match=f"^The base model's {named}.* changed since"):
        finetune(moved, run, resume=True)
    with pytest.raises(InputError, match=f"is not what it was .*{named}.* changed"):
        Reader.load(run)


def test_another_model_is_named_on_resuming(
    finished: tuple[Path, FinetuneResult], chosen: RunSettings, tiny_folder: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    tiny_model("llama").save_pretrained(other)
    source = chosen.model.model_copy(update={"source": str(other)})
    with pytest.raises(InputError) as refused:
        finetune(chosen.model_copy(update={"model": source}), run, resume=True)
    assert str(refused.value) == (
        f"{other} is not the model with which the run began, which is {tiny_folder}: resume with "
        "that one (leave --model out), or start a new run in another folder."
    )


def test_long_answers_of_the_training_data_can_be_given(
    tiny_folder: Path, tmp_path: Path, finished: tuple[Path, FinetuneResult]
) -> None:
    """A Chinese character is three tokens of the tiny tokenizer, as of many English ones."""
    context = "北京是中华人民共和国的首都，位于华北平原的北部，是全国的政治中心和文化中心。"
    gold = "中华人民共和国的首都，位于华北"
    question = Question("a", "北京?", (Answer(gold, context.index(gold)),))
    write_official(tmp_path / "train.json", [Passage(context, (question,))], "1.1")
    free = "evaluation.max_answer_tokens=null"
    finetune(choose(tiny_folder, tmp_path / "train.json", free), tmp_path / "run")
    reader = Reader.load(tmp_path / "run")
    assert len(reader.tokenizer.encode([f" {gold}"])[0].ids) + 1 == reader.max_answer_tokens > 32
    spans = _spans(context, (0, len(context)), reader._rules)
    assert gold in {context[slice(*span.place)] for span in spans if span.place}
    # A given number is kept.
    assert Reader.load(finished[0]).max_answer_tokens == 12


def test_the_longest_answer_leaves_room_for_the_context() -> None:
    eos = np.zeros(1, np.int32)
    lengths = [*range(2, 400), *[1] * 400]
    branches = tuple(Branch(str(n), eos, np.zeros(n, np.int32)) for n in lengths)
    encoded = Encoded([Tree(eos, branches, 0, (0, 1))], EncodingCounts())
    assert longest_answer(encoded, 8192) == 398
    assert longest_answer(encoded, 1024) == 256
    assert longest_answer(encoded, 64) == 32


def test_an_unknown_acceleration_leaves_no_run(chosen: RunSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        finetune(without(chosen, "word-cash"), tmp_path / "run")
    names = ", ".join([*OF_MODELS, *OF_PREPARATION, *OF_COMMANDS])
    assert str(told.value) == (
        "There is no acceleration 'word-cash' (did you mean word-cache?); give `all`, or one of "
        f"{names}."
    )
    assert not (tmp_path / "run").exists()


def test_a_run_made_with_relative_paths_works_in_another_folder(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    shutil.copytree(tiny_folder, tmp_path / "base")
    shutil.copy(data / "train.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    chosen = choose(Path("base"), Path("train.json"), "optimisation.max_steps=1")
    finetune(chosen, run)
    finetune(chosen, run, resume=True)
    monkeypatch.chdir(tmp_path / "there")
    finetune(load_settings([run / "settings.yaml"]), run, resume=True)
    assert len(Reader.load(run).answer("The mill is old.", ["What is old?"])) == 1
    config = read(run / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(tmp_path / "base")


def test_the_adapter_is_the_one_of_the_best_step(finished: tuple[Path, FinetuneResult]) -> None:
    run, result = finished
    assert result.after is not None
    scored = [r for r in RunDirectory(run).metrics() if r["kind"] == "evaluation" and r["step"]]
    best = max(scored, key=lambda record: (record["f1"], record["step"]))
    assert result.after.step == best["step"]
    checkpoint = run / "checkpoints" / f"step-{best['step']:06d}" / "adapter"
    assert weights(run) == (checkpoint / "adapter_model.safetensors").read_bytes()


def test_without_dev_data_the_last_weights_are_kept(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    result = finetune(choose(tiny_folder, data / "train.json"), tmp_path / "run")
    assert result.after is None
    last = tmp_path / "run" / "checkpoints" / "step-000008" / "adapter"
    assert weights(tmp_path / "run") == (last / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def best_is_step_3(chosen: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose scores were best after step 3, then after step 6."""
    run = tmp_path_factory.mktemp("runs") / "best is step 3"
    f1 = iter([0.0, 90.0, 50.0, 40.0])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SharedScoring, "merge", lambda *_: scores(next(f1)))
        assert finetune(chosen, run).after == Evaluation(3, 0.0, 90.0, 10)
    return run


def _cut_adapter(checkpoint: Path) -> None:
    file = checkpoint / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _empty_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut_adapter, _empty_manifest])
def test_an_adapter_outlives_the_checkpoint_that_it_was_made_from(
    best_is_step_3: Path, chosen: RunSettings, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = shutil.copytree(best_is_step_3, tmp_path / "run")
    damage(run / "checkpoints" / "step-000003")
    assert finetune(chosen, run, resume=True).after == Evaluation(3, 0.0, 90.0, 10)
    assert weights(run) == weights(best_is_step_3)
    assert "| these weights, of step 3 | 0.00 | 90.00 |" in card_of(run)


@pytest.mark.parametrize("damage", [_cut_adapter, _empty_manifest, shutil.rmtree])
def test_the_next_best_checkpoint_is_the_result_if_all_copies_of_the_best_are_lost(
    best_is_step_3: Path, chosen: RunSettings, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = shutil.copytree(best_is_step_3, tmp_path / "run")
    damage(run / "checkpoints" / "step-000003")
    _cut_adapter(run)
    assert finetune(chosen, run, resume=True).after == Evaluation(6, 0.0, 50.0, 10)
    assert weights(run) == weights(run / "checkpoints" / "step-000006")
    assert "| these weights, of step 6 | 0.00 | 50.00 |" in card_of(run)


def card_of(run: Path) -> str:
    return (run / "adapter" / "README.md").read_text(encoding="utf-8")


def test_an_existing_run_is_not_overwritten(
    finished: tuple[Path, FinetuneResult], chosen: RunSettings
) -> None:
    before = weights(finished[0])
    with pytest.raises(InputError, match="exists already"):
        finetune(chosen, finished[0])
    assert weights(finished[0]) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "prompt.max_length=257",
            "^max_length is 257 tokens, but the model takes no more than 256; lower max_length.$",
        ),
        ("lora.target_modules=c_atn", "did you mean"),
        ("data.train=nowhere.json", r"nowhere\.json"),
    ],
)
def test_wrong_settings_leave_no_run(
    tiny_folder: Path, data: Path, tmp_path: Path, override: str, message: str
) -> None:
    chosen = choose(tiny_folder, data / "train.json", override)
    with pytest.raises(InputError, match=message):
        finetune(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_windows_are_as_long_where_contexts_are_read_twice(tiny_tokenizer: Any) -> None:
    segments = SegmentTokenizer.from_transformers(tiny_tokenizer)
    passages = [replace(p, context=f"{p.context} {FILLER}") for p in PASSAGES]
    once, twice = (
        usual_context(
            PromptEncoder(segments, template, 2000, 128).encode_training(passages), template
        )
        for template in (Template(), Template(TWICE))
    )
    # The line break between the contexts counts for a half.
    assert 256 < once <= twice <= once + 1


def test_windows_and_left_out_questions_are_reported(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filler = " ".join(["and the old mill by the river"] * 20)
    passages = [
        Passage(f"{passage.context} {filler}", passage.questions) for passage in PASSAGES[:1]
    ]
    write_official(tmp_path / "long.json", passages, "1.1")
    chosen = choose(
        tiny_folder, tmp_path / "long.json", "prompt.max_length=160", "prompt.stride=20"
    )
    with caplog.at_level(logging.INFO, logger="loraqa"):
        finetune(chosen, tmp_path / "run")
    assert (
        "1 context is too long for 160 tokens (prompt.max_length) and read in windows. "
        in caplog.text
    )
    assert "parameters are trained" in caplog.text
    told = read(tmp_path / "run" / "data.json")["train"]["encoding"]
    assert told["windowed"] == 1
    assert told["left_out"] > 0


def test_unanswerable_questions_make_a_reader_that_may_give_no_answer(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passages = [Passage(PASSAGES[0].context, (*PASSAGES[0].questions, Question("none", "Why?")))]
    write_official(tmp_path / "v2.json", passages, "2.0")
    chosen = choose(tiny_folder, tmp_path / "v2.json", "optimisation.epochs=1")
    with caplog.at_level(logging.INFO, logger="loraqa"):
        finetune(chosen, tmp_path / "run")
    told = (
        f"1 of {len(PASSAGES[0].questions) + 1} questions of {tmp_path / 'v2.json'} has no answer "
        f"(the first: data[0].paragraphs[0].qas[{len(PASSAGES[0].questions)}], id 'none'), so the "
        "run learn"
    )
    assert (
        f'{told}s to say "no answer", and says it where its probability is above 0.5; give them '
        "answers, or leave them out, if that is not meant."
    ) in caplog.messages
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"{told}ed to say “no answer”." in html.unescape(page)
    assert read(tmp_path / "run" / "adapter" / "loraqa.json")["version"] == "2.0"


def test_random_weights_are_reported(
    tiny_folder: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = choose(tiny_folder, data / "train.json", "model.random_weights=true")
    finetune(chosen, tmp_path / "run")
    assert "RANDOM WEIGHTS" in caplog.text
    assert "random weights" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def many_passages(count: int) -> list[Passage]:
    """Return passages of ten questions each."""
    texts = [f"Salt came from hill {n}, and bread from house {n}." for n in range(count)]
    asked = ["Where did salt come from?", "Where did bread come from?"]
    return [
        Passage(
            text,
            tuple(
                Question(f"{n}-{k}", asked[k % 2], (Answer(where, text.index(where)),))
                for k in range(10)
                for where in [f"hill {n}" if k % 2 == 0 else f"house {n}"]
            ),
        )
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_a_run_learns_when_there_is_no_answer_and_how_far_to_trust_one(
    version: Literal["1.1", "2.0"],
    tiny_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    passages = many_passages(52)
    if version == "2.0":
        passages = [
            Passage(p.context, (*p.questions, Question(f"{n}-none", "Why?")))
            for n, p in enumerate(passages)
        ]
    write_official(tmp_path / "many.json", passages, version)
    chosen = choose(
        *(tiny_folder, tmp_path / "many.json", "data.negatives=0.3", "optimisation.epochs=1"),
        *("optimisation.questions_per_step=100", "optimisation.tokens_per_batch=4000"),
    )
    run = tmp_path / "run"
    with caplog.at_level(logging.INFO, logger="loraqa"):
        finetune(chosen, run)
    facts = read(run / "data.json")["train"]
    held_out = 60 if version == "1.1" else 66
    assert facts["held_out"] == held_out
    assert facts["questions"] == len(passages) * (10 if version == "1.1" else 11)
    assert facts["negatives"] > 50
    assert f"{facts['negatives']} of the questions are asked on another context" in caplog.text
    assert f"{held_out} questions are held out" in caplog.text
    better = "is above 0.5, or above what is best on the held-out questions; give"
    assert (better in caplog.text) == (version == "2.0")
    info = read_adapter_info(run / "adapter")
    assert info.learned_no_answer
    assert (info.no_answer_threshold is None) == (version == "1.1")
    reader = Reader.load(run)
    assert (reader.learned_no_answer, reader.calibration) == (True, info.calibration)
    assert reader.no_answer_threshold == info.no_answer_threshold
    if info.calibration is not None:
        # Some of them are asked on another context, too.
        assert held_out < info.calibration.questions < 2 * held_out
        (answer,) = reader.answer(passages[0].context, ["Where did salt come from?"])
        fitted = info.calibration.answer if answer.text else info.calibration.no_answer
        assert (answer.confidence is None) == (fitted is None)
    # As if it had been killed before the adapter was written.
    shutil.rmtree(run / "adapter")
    finetune(load_settings([run / "settings.yaml"]), run, resume=True)
    assert read_adapter_info(run / "adapter") == info
