"""Sweeps on tiny models: whole, killed, stopped, with trials that fail or are ended early."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Call
from tests.sweep.conftest import choose

from loraqa.errors import InputError, LoraqaError
from loraqa.finetuning import finetune
from loraqa.reader import Reader
from loraqa.sweep.run import sweep
from loraqa.sweep.settings import SweepSettings
from loraqa.sweep.tried import Tried
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, load_settings

RATE = "optimisation.learning_rate"

# A program that runs the command line and sends itself a signal after a step of the second trial.
STOPPED = """
import os, sys
import loraqa.cli
from loraqa.train.run import RunDirectory

number, *arguments = sys.argv[1:]
append = RunDirectory.append

def append_and_stop(self, record):
    append(self, record)
    if self.path.name == "trial-0002" and record["kind"] == "train" and record["step"] == 5:
        os.kill(os.getpid(), int(number))

RunDirectory.append = append_and_stop
sys.argv = ["loraqa", *arguments]
loraqa.cli.main()
"""


def of(ranges: dict[str, Any], **options: Any) -> SweepSettings:
    return SweepSettings.model_validate({"ranges": ranges, "sampler": "grid", **options})


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def as_text(chosen: RunSettings, folder: Path) -> Path:
    path = folder / "settings.yaml"
    path.write_text(chosen.to_yaml())
    return path


# The second rate is so large that the loss becomes infinite.
GRID = of({"lora.rank": [2, 4], RATE: [1e-2, 1e30]})


@pytest.fixture(scope="module")
def swept(
    chosen: RunSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Tried]]:
    """A sweep of which every second trial fails."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    return folder, sweep(GRID, chosen, folder, "loraqa sweep")


def test_each_trial_is_a_run_with_an_adapter(swept: tuple[Path, list[Tried]]) -> None:
    folder, trials = swept
    assert [dict(each.values) for each in trials] == [
        {"lora.rank": rank, RATE: rate} for rank in (2, 4) for rate in (1e-2, 1e30)
    ]
    for number, rank in ((1, 2), (3, 4)):
        run = folder / f"trial-{number:04d}"
        assert load_settings([run / "settings.yaml"]).lora.rank == rank
        scored = [r for r in RunDirectory(run).metrics() if r["kind"] == "evaluation"]
        best = max(each["f1"] for each in scored if each["step"] > 0)
        assert trials[number - 1].f1 == best
        assert Reader.load(run).answer("The mill is old.", ["What is old?"])


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(
    swept: tuple[Path, list[Tried]],
) -> None:
    folder, trials = swept
    assert [each.state for each in trials] == ["done", "failed", "done", "failed"]
    told = rows(folder)
    assert [row["state"] for row in told] == ["done", "failed", "done", "failed"]
    for row in (told[1], told[3]):
        assert row["problem"].startswith("The loss is")
        assert row["f1"] == ""
    assert "Trial 2 failed: The loss is" in (folder / "report.html").read_text()


def test_checkpoints_of_finished_trials_are_removed(swept: tuple[Path, list[Tried]]) -> None:
    folder, _ = swept
    assert not list(folder.rglob("checkpoints"))
    assert (folder / "trial-0001" / "adapter").exists()


def test_the_winners_file_trains_the_winner(
    swept: tuple[Path, list[Tried]], call: Call, tmp_path: Path
) -> None:
    folder, trials = swept
    best = max((each for each in trials if each.f1 is not None), key=lambda each: each.f1 or 0)
    status, _, error = call("train", folder / "best.yaml", "--out", tmp_path / "run")
    assert status == 0, error
    assert weights(tmp_path / "run") == weights(folder / f"trial-{best.number:04d}")


def test_a_trial_that_is_behind_is_ended_early(
    chosen: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1 is made to fall with the rank, because tiny models answer nothing."""
    append = RunDirectory.append

    def scored(self: RunDirectory, record: Any) -> None:
        if record["kind"] == "evaluation":
            record["f1"] = 50 - load_settings([self.settings_file]).lora.rank
        append(self, record)

    monkeypatch.setattr(RunDirectory, "append", scored)
    trials = sweep(of({"lora.rank": [2, 4]}, halving=2), chosen, tmp_path / "sweep", "loraqa sweep")
    assert [each.state for each in trials] == ["done", "halved"]
    assert trials[1].f1 == 46
    steps = [
        [r["step"] for r in RunDirectory(tmp_path / "sweep" / name).metrics()][-1]
        for name in ("trial-0001", "trial-0002")
    ]
    # It ends with the step after the evaluation.
    assert steps == [8, 4]
    assert not (tmp_path / "sweep" / "trial-0002" / "adapter").exists()


@pytest.mark.parametrize(
    ("base", "number", "status"),
    [("gpt2", signal.SIGKILL, -9), ("llama", signal.SIGINT, 130)],
    indirect=["base"],
)
def test_a_sweep_that_was_stopped_goes_on_to_the_same_end(
    chosen: RunSettings, tmp_path: Path, call: Call, number: signal.Signals, status: int
) -> None:
    (tmp_path / "sweep.yaml").write_text(f"sampler: grid\nranges: {{{RATE}: [1e-3, 1e-2, 2e-2]}}\n")
    arguments = ["sweep", tmp_path / "sweep.yaml", "--config", as_text(chosen, tmp_path), "--out"]
    killed = [sys.executable, "-c", STOPPED, str(int(number)), *arguments, tmp_path / "killed"]
    done = subprocess.run([str(word) for word in killed], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    if number == signal.SIGINT:
        last = done.stderr.splitlines()[-1]
        assert last.startswith("loraqa: Stopped by SIGINT in trial 2 of 3; go on with `loraqa swee")
    first = weights(tmp_path / "killed" / "trial-0001")
    (tmp_path / "killed" / "trial-0001" / "mark").write_text("trained once")

    status, output, error = call(*arguments, tmp_path / "killed", "--json")
    assert status == 0, error
    assert "Going on from" in error
    trials = json.loads(output)["trials"]
    assert [each["values"][RATE] for each in trials] == [1e-3, 1e-2, 2e-2]
    assert [each["state"] for each in trials] == ["done"] * 3
    # The first trial was not trained again, and the second one went on to the same bits.
    assert (tmp_path / "killed" / "trial-0001" / "mark").exists()
    assert weights(tmp_path / "killed" / "trial-0001") == first
    finetune(chosen.with_values({RATE: 1e-2}), tmp_path / "alone")
    assert weights(tmp_path / "killed" / "trial-0002") == weights(tmp_path / "alone")
    assert trials[1]["seconds"] is None


def test_a_finished_sweep_trains_nothing_more(
    swept: tuple[Path, list[Tried]], chosen: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trials = swept
    monkeypatch.setattr("loraqa.sweep.run.finetune", None)
    assert sweep(GRID, chosen, folder, "loraqa sweep") == trials


def test_a_sweep_does_not_go_on_with_other_ranges_or_settings(
    swept: tuple[Path, list[Tried]], chosen: RunSettings
) -> None:
    folder, _ = swept
    with pytest.raises(InputError, match=r"another lora.rank, \[2, 4\] and not \[2, 8\]"):
        sweep(of({"lora.rank": [2, 8], RATE: [1e-2, 1e30]}), chosen, folder, "")
    with pytest.raises(InputError, match="another optimisation.epochs, 4 and not 5"):
        sweep(GRID, chosen.with_values({"optimisation.epochs": 5}), folder, "")


def test_if_every_trial_fails_the_sweep_fails(chosen: RunSettings, tmp_path: Path) -> None:
    with pytest.raises(LoraqaError, match=r"No trial was trained to the end; .*trials.csv says"):
        sweep(of({RATE: [1e30]}), chosen, tmp_path / "sweep", "loraqa sweep")
    assert not (tmp_path / "sweep" / "best.yaml").exists()


def test_wrong_input_is_told_before_a_trial(chosen: RunSettings, tmp_path: Path) -> None:
    what = of({"lora.rank": [2]})
    with pytest.raises(InputError, match="A sweep needs data to score its trials on"):
        sweep(what, chosen.with_values({"data.dev": None}), tmp_path / "sweep", "")
    with pytest.raises(InputError, match="nowhere.json"):
        sweep(what, chosen.with_values({"data.dev": "nowhere.json"}), tmp_path / "sweep", "")
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(InputError, match="other exists already, and holds no sweep"):
        sweep(what, chosen, tmp_path / "other", "")


def test_the_command_shows_the_trials_and_the_winner(
    chosen: RunSettings, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "sweep.yaml").write_text("trials: 5\nranges: {lora.rank: {from: 1, to: 4}}")
    config = as_text(chosen, tmp_path)
    out = tmp_path / "out"
    status, output, error = call(
        "sweep", tmp_path / "sweep.yaml", "--config", config, "--out", out, "--trials", 1
    )
    assert status == 0, error
    assert output.startswith("1 trial")
    assert f"`loraqa train {out / 'best.yaml'} --out RUN`" in error
    assert {"best.yaml", "report.html", "study.db", "trials.csv", "trial-0001"} == {
        path.name for path in out.iterdir()
    }


def test_without_optuna_the_command_says_what_to_install(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("loraqa.sweep", "optuna"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    (tmp_path / "sweep.yaml").write_text("ranges: {lora.rank: [2, 4]}")
    config = as_text(choose("gpt2", "train.json"), tmp_path)
    assert call("sweep", tmp_path / "sweep.yaml", "--config", config, "--out", tmp_path / "o") == (
        1,
        "",
        "loraqa: `loraqa sweep` needs optuna; install it with `pip install -e '.[sweep]'`.\n",
    )
