"""What a training is said to cost is what it then costs, by a clock that only computing moves."""

import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import loraqa.train.loop
from loraqa.costs import Costs, estimate_costs
from loraqa.finetuning import finetune
from loraqa.lora.flat import FlatAdapter
from loraqa.model.loss import Gradients
from loraqa.model.runner import Runner, plain_gradients
from loraqa.model.session import DecodingSession
from loraqa.prompt.plan import tree_tokens
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.tree import Tree
from loraqa.report.time_left import SCORING_ONCE_TRAINED
from loraqa.squad import Passage, Question, write_official
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, load_settings
from tests.conftest import Call, tiny_model, town_passages
from tests.train.conftest import PASSAGES

# Seconds that a token takes by the clock of `Timed`.
TOKEN = 0.001


@dataclass
class Clock:
    """A clock that nearly stands still until it is moved; no two readings are equal."""

    now: float = 0.0

    def __call__(self) -> float:
        self.now += 1e-9
        return self.now


@dataclass(frozen=True)
class Timed:
    """A runner that moves a clock by its tokens, and needs some memory for a micro-batch."""

    runner: Runner
    clock: Clock = field(default_factory=Clock)
    memory: int = 0

    @property
    def model(self) -> Any:
        return self.runner.model

    def size(self, trees: Sequence[Tree]) -> int:
        return self.runner.size(trees)

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        torch.ones(self.memory, dtype=torch.uint8)
        self.clock.now += TOKEN * tree_tokens(trees)
        return self.runner.answer_logits(trees)

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        return plain_gradients(self, adapter)

    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        self.clock.now += TOKEN * tree_tokens(trees)
        return self.runner.prefill(trees)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(request.param).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.json"
    write_official(path, PASSAGES, "1.1")
    return path


@pytest.fixture(scope="module")
def chosen(base: Path, data: Path) -> RunSettings:
    """Settings of eight steps, with scorings and checkpoints at 3, 6 and 8."""
    return load_settings(
        overrides=[
            *(f"model.source={base}", f"data.train={data}", f"data.dev={data}"),
            *("model.dtype=float32", "data.negatives=0", "lora.rank=4", "speed.without=all"),
            *("optimisation.epochs=4", "optimisation.questions_per_step=4"),
            *("optimisation.tokens_per_batch=300", "optimisation.learning_rate=1e-2"),
            *("evaluation.every=3", "evaluation.max_answer_tokens=12", "checkpoint.every=3"),
        ]
    )


def estimate(settings: RunSettings, clock: Clock, memory: int = 0) -> Costs:
    return estimate_costs(settings, change=lambda runner, _: Timed(runner, clock, memory))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_training_costs_what_was_said(
    chosen: RunSettings, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, largest = Clock(), 0
    monkeypatch.setattr(time, "perf_counter", clock)
    costs = estimate(chosen, clock)

    remove = loraqa.train.loop.remove_superseded

    def measuring(checkpoints: Path, *rest: Any) -> None:
        nonlocal largest
        largest = max(largest, size(checkpoints))
        remove(checkpoints, *rest)

    monkeypatch.setattr(loraqa.train.loop, "remove_superseded", measuring)

    def change(runner: Runner, _: SegmentTokenizer) -> Runner:
        return Timed(runner, clock)

    result = finetune(chosen, tmp_path / "run", change=change)
    told = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    trained = costs.work["trained_parameters"]
    assert dict(costs.work) == {
        "steps": result.steps,
        "epochs": chosen.optimisation.epochs,
        "questions": told["questions"],
        "negatives": 0,
        "contexts": told["contexts"],
        "windows": told["encoding"]["trees"],
        "tokens_as_trees": told["encoding"]["tree_tokens"],
        "tokens_as_examples": told["encoding"]["separate_tokens"],
        "trained_parameters": trained,
        "parameters": trained + AutoModelForCausalLM.from_pretrained(base).num_parameters(),
    }
    assert costs.memory["weights"] == 4 * (costs.work["parameters"] - trained)
    # Weights, gradient and two means.
    assert costs.memory["adapter"] == 4 * 4 * trained
    # Beside so small a model, the few bytes that differ between checkpoints count.
    assert costs.disk["checkpoints"] == pytest.approx(largest, rel=0.1)
    assert costs.disk["adapter"] <= size(tmp_path / "run" / "adapter")
    scorings = [r for r in RunDirectory(tmp_path / "run").metrics() if r["kind"] == "evaluation"]
    assert costs.seconds["training"] == pytest.approx(result.training_seconds, rel=0.05)
    assert costs.seconds["first_scoring"] == pytest.approx(scorings[0]["seconds"])
    # The report has the answers to the dev questions once more.
    after = costs.seconds["calibration_and_report"]
    assert after == pytest.approx(SCORING_ONCE_TRAINED * scorings[0]["seconds"])
    assert costs.seconds["later_scorings"] == pytest.approx(3 * after)


def test_a_dry_run_of_small_data_says_how_often_they_are_seen(
    chosen: RunSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = chosen.with_values({"optimisation.epochs": None, "data.dev": None})
    work = estimate_costs(small).work
    with caplog.at_level(logging.INFO, logger="loraqa"):
        result = finetune(small, tmp_path / "run")
    assert "So few questions are seen up to 10 times (optimisation.epochs)." in caplog.messages
    last = RunDirectory(tmp_path / "run").metrics()[-1]
    assert (last["step"], last["epoch"]) == (work["steps"], work["epochs"]) == (20, 10)
    assert result.steps == 20
    shorter = small.with_values({"optimisation.max_steps": 5})
    work = estimate_costs(shorter).work
    assert (work["steps"], work["epochs"]) == (5, 2.5)


def test_max_steps_are_made_however_often_small_data_are_seen(
    chosen: RunSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = chosen.with_values(
        {"optimisation.epochs": None, "optimisation.max_steps": 25, "data.dev": None}
    )
    work = estimate_costs(longer).work
    with caplog.at_level(logging.INFO, logger="loraqa"):
        assert finetune(longer, tmp_path / "run").steps == work["steps"] == 25
    assert work["epochs"] == 12.5
    told = (
        "To make optimisation.max_steps=25, questions are seen up to 13 times "
        "(optimisation.epochs)."
    )
    assert told in caplog.messages


def test_max_steps_out_of_reach_are_told(
    chosen: RunSettings, caplog: pytest.LogCaptureFixture
) -> None:
    told = (
        "The run ends after 8 steps, before optimisation.max_steps=9, because of "
        "optimisation.epochs=4; leave the epochs out to make all steps."
    )
    for most in (8, 9):
        bounded = {"optimisation.epochs": 4, "optimisation.max_steps": most, "data.dev": None}
        assert estimate_costs(chosen.with_values(bounded)).work["steps"] == 8
        assert (told in caplog.messages) == (most == 9)


def test_memory_of_a_step_is_measured(chosen: RunSettings) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux can measure a process's peak memory again")
    small, large = (estimate(chosen, Clock(), memory).memory for memory in (0, 400 * 2**20))
    grown = large["activations"] - small["activations"]
    assert 350 * 2**20 < grown < 450 * 2**20
    assert small["total"] == sum(small[part] for part in small if part != "total")


def test_without_dev_data_no_answer_is_timed(base: Path, tmp_path: Path) -> None:
    write_official(tmp_path / "many.json", town_passages(260), "1.1")
    settings = load_settings(
        overrides=[f"model.source={base}", f"data.train={tmp_path / 'many.json'}"]
    )
    seconds = estimate_costs(settings).seconds
    assert (seconds["first_scoring"], seconds["later_scorings"]) == (0, 0)
    assert seconds["calibration_and_report"] is None
    assert seconds["total"] == seconds["training"]


def everything_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def words_of(settings: RunSettings, folder: Path) -> list[str]:
    (folder / "settings.yaml").write_text(settings.to_yaml())
    return ["train", str(folder / "settings.yaml"), "--dry-run"]


def test_a_dry_run_shows_the_costs_and_leaves_nothing(
    call: Call, chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    words = words_of(chosen, tmp_path)
    before = everything_in(tmp_path)
    status, printed, error = call(*words, "--json", "--out", tmp_path / "run")
    assert status == 0, error
    costs = json.loads(printed)
    assert costs["work"]["steps"] == 8
    assert costs["seconds"]["total"] > 0
    status, printed, error = call(*words)
    assert status == 0, error
    (steps,) = (line.split() for line in printed.splitlines() if " steps " in line)
    assert steps == ["work", "steps", "8"]
    assert everything_in(tmp_path) == before


def test_a_stopped_dry_run_leaves_nothing(
    call: Call, chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(RunDirectory, "append", lambda *_: signal.raise_signal(signal.SIGINT))
    status, printed, error = call(*words_of(chosen, tmp_path))
    assert (status, printed) == (130, "")
    assert error.splitlines()[-1] == "loraqa: Stopped by SIGINT; a dry run keeps nothing."
    assert everything_in(tmp_path / "temporary") == set()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["model.source=gone/"], "no folder"),
        (["data.dev=gone.json"], "gone.json"),
        (["lora.rank=1000"], "1,000, but no adapted matrix"),
        (["prompt.max_length=40"], "takes 27 of 40 tokens"),
        (["data.dev=LONG"], "leaves no room"),
        ([], "is not empty and holds no run"),
    ],
)
def test_a_dry_run_refuses_what_a_training_refuses(
    call: Call, chosen: RunSettings, tmp_path: Path, changes: list[str], says: str
) -> None:
    long = Passage("The mill is old.", (Question("long", "Why? " * 300),))
    write_official(tmp_path / "long.json", [long], "2.0")
    (tmp_path / "full" / "file").mkdir(parents=True)
    words = words_of(chosen, tmp_path)
    for change in changes:
        words += ["--set", change.replace("LONG", str(tmp_path / "long.json"))]
    out = tmp_path / ("new" if changes else "full")
    dry = call(*words, "--out", out)
    words.remove("--dry-run")
    real = call(*words, "--out", out)
    assert dry[0] == real[0] == 2
    assert dry[2].splitlines()[-1] == real[2].splitlines()[-1]
    assert says in dry[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dry-run", "--resume", "--out", "run"], "leave --resume out"),
        ([], "--out is missing"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    call: Call, words: list[str], says: str
) -> None:
    status, printed, error = call("train", "--model", "gpt2", "--train", "train.json", *words)
    assert (status, printed) == (2, "")
    assert says in error
