"""The whole recipe in several processes: scores, files, stops and errors."""

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.distributed.together import attempt_together, together
from tests.train.conftest import PASSAGES

from loraqa.adapter.info import BaseInfo
from loraqa.answer.evaluate import evaluate
from loraqa.answer.together import SharedScoring
from loraqa.distributed import processes
from loraqa.distributed.ranks import PeerError, Ranks
from loraqa.errors import InputError
from loraqa.files import read_json
from loraqa.finetuning import finetune
from loraqa.finetuning.reading import SCORING
from loraqa.finetuning.ready import get_ready
from loraqa.lora.settings import TENSORS
from loraqa.squad import read_passages, write_official
from loraqa.train.run import RunDirectory, check_same, warn_of_other_accelerations
from loraqa.train.settings import RunSettings, load_settings
from loraqa.train.stopping import StoppedError


@pytest.fixture(scope="module")
def chosen(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """Settings of eight steps with a scoring every three steps."""
    data = tmp_path_factory.mktemp("data")
    write_official(data / "train.json", PASSAGES, "1.1")
    write_official(data / "dev.json", PASSAGES[:3], "1.1")
    return load_settings(
        overrides=[
            f"model.source={tiny_folder}",
            "model.dtype=float32",
            f"data.train={data / 'train.json'}",
            f"data.dev={data / 'dev.json'}",
            "data.negatives=0",
            "lora.rank=4",
            "optimisation.epochs=4",
            "optimisation.questions_per_step=4",
            "optimisation.learning_rate=1e-2",
            "evaluation.every=3",
            "evaluation.max_answer_tokens=12",
            "checkpoint.every=2",
            "speed.without=all",
        ]
    )


@pytest.fixture(scope="module")
def warm(chosen: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Undisturbed runs of one and of two processes, by their number."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def work(ranks: Ranks) -> None:
        finetune(chosen, folder / f"{ranks.size}", ranks=ranks)

    for size in (1, 2):
        together(size, work, folder)
    return {size: folder / f"{size}" for size in (1, 2)}


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def scores(run: Path) -> list[dict[str, Any]]:
    return [
        {key: record[key] for key in ("step", "exact_match", "f1", "total")}
        for record in RunDirectory(run).metrics()
        if record["kind"] == "evaluation"
    ]


def test_the_scores_and_the_files_are_those_of_one_process(warm: dict[int, Path]) -> None:
    one, two = warm[1], warm[2]
    assert scores(two) == scores(one)
    assert {p.relative_to(two) for p in two.rglob("*")} == {
        p.relative_to(one) for p in one.rglob("*")
    }
    assert read_json(two / "environment.json")["processes"] == 2
    keys = "template", "base", "train"
    assert [read_json(two / "data.json")[key] for key in keys] == [
        read_json(one / "data.json")[key] for key in keys
    ]


def test_all_go_on_from_the_adapter_that_the_first_one_reads(
    chosen: RunSettings, warm: dict[int, Path], tmp_path: Path
) -> None:
    settings = chosen.with_values({"lora.start": str(warm[1]), "optimisation.max_steps": 2})

    def work(ranks: Ranks) -> None:
        finetune(settings, tmp_path / f"{ranks.size}", ranks=ranks)

    for size in (1, 2):
        together(size, work, tmp_path)
    one, two = (load_file(tmp_path / f"{size}" / "adapter" / TENSORS) for size in (1, 2))
    assert all(one[key].allclose(matrix, atol=1e-5) for key, matrix in two.items())
    assert scores(tmp_path / "2") == scores(tmp_path / "1")
    best = max(record["f1"] for record in scores(warm[1])[1:])
    assert scores(tmp_path / "2")[0]["f1"] == best


def test_shared_answers_have_exactly_the_scores_of_one_process(
    chosen: RunSettings, tmp_path: Path
) -> None:
    ready = get_ready(chosen)
    sample = read_passages(str(chosen.data.dev))
    expected = evaluate(ready.reader, sample, SCORING)

    def work(ranks: Ranks) -> tuple[int, Any]:
        scoring = SharedScoring(ready.reader, sample, SCORING, ranks, lambda *_: None)
        own = scoring.answer()
        return len(own), scoring.merge(own)

    found = together(4, work, tmp_path)
    # There are three contexts.
    assert sorted(number > 0 for number, _ in found) == [False, True, True, True]
    assert sum(number for number, _ in found) == len(expected.predictions)
    for _, merged in found:
        assert merged.overall == expected.scores.overall
        assert merged.by_question == expected.scores.by_question


def stopping(when: Callable[[Any], bool]) -> Callable[[Any], None]:
    """Return a function that sends SIGTERM to its process when a record is the one."""

    def stop(record: Any) -> None:
        if when(record):
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def test_one_signal_stops_all_after_the_same_step_and_all_go_on_to_the_same_bits(
    chosen: RunSettings, warm: dict[int, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    seldom = chosen.with_values({"checkpoint.every": 100})

    def work(ranks: Ranks) -> None:
        after_step_4 = stopping(lambda record: record["step"] == 4)
        on_record = after_step_4 if ranks.rank == 1 else lambda _: None
        finetune(seldom, run, ranks=ranks, on_record=on_record)

    first, second = attempt_together(2, work, tmp_path)
    # Rank 0 learns it with the gradient of step 5.
    for ended in (first, second):
        assert ended.raised is StoppedError
        assert "Stopped by SIGTERM after step 5 of 8" in ended.said
    assert "torchrun --nproc-per-node 2 -m loraqa train" in first.said
    assert (run / "checkpoints" / "step-000005").exists()

    together(2, lambda ranks: finetune(chosen, run, ranks=ranks, resume=True), tmp_path)
    assert weights(run) == weights(warm[2])
    assert scores(run) == scores(warm[2])


@pytest.mark.parametrize("option", ["lora.initialisation=pissa", "lora.dora=true"])
def test_processes_without_the_checkpoint_go_on_from_it(
    option: str, chosen: RunSettings, tmp_path: Path
) -> None:
    """Only rank 0 reads it. The others split or measure the base's weights again."""
    key, value = option.split("=")
    other = chosen.with_values({key: value == "true" or value, "data.dev": None})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    def stop(ranks: Ranks) -> None:
        finetune(
            other, stopped, ranks=ranks, on_record=stopping(lambda record: record["step"] == 3)
        )

    together(2, lambda ranks: finetune(other, whole, ranks=ranks), tmp_path)
    ended = attempt_together(2, stop, tmp_path)
    assert [each.raised for each in ended] == [StoppedError] * 2
    together(2, lambda ranks: finetune(other, stopped, ranks=ranks, resume=True), tmp_path)
    assert weights(stopped) == weights(whole)


def test_a_signal_while_one_scores_drops_the_scores_of_all(
    chosen: RunSettings, warm: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    answer, times = SharedScoring.answer, []

    def interrupted(self: SharedScoring) -> Any:
        times.append(1)
        if self.ranks.rank == 1 and len(times) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(self)

    with monkeypatch.context() as patched:
        patched.setattr(SharedScoring, "answer", interrupted)
        ended = attempt_together(2, lambda ranks: finetune(chosen, run, ranks=ranks), tmp_path)
    assert ["after step 3 of 8" in each.said for each in ended] == [True, True]
    assert [record["step"] for record in scores(run)] == [0]

    together(2, lambda ranks: finetune(chosen, run, ranks=ranks, resume=True), tmp_path)
    assert weights(run) == weights(warm[2])
    assert scores(run) == scores(warm[2])


def test_other_data_on_one_machine_are_refused(chosen: RunSettings, tmp_path: Path) -> None:
    write_official(tmp_path / "other.json", PASSAGES[1:], "1.1")
    other = chosen.with_values({"data.train": str(tmp_path / "other.json")})

    def work(ranks: Ranks) -> None:
        finetune(other if ranks.rank == 1 else chosen, tmp_path / "run", ranks=ranks)

    for ended in attempt_together(2, work, tmp_path):
        assert ended.raised is InputError
        assert "The training data of rank 1 differ from those of rank 0" in ended.said
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_first_is_told_once(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        ranks.of_first(lambda: RunDirectory(tmp_path).settings(), "the settings")

    first, second = attempt_together(2, work, tmp_path)
    assert first.raised is InputError
    assert (second.raised, second.said) == (SystemExit, "2")


def test_an_error_in_one_process_ends_the_others(chosen: RunSettings, tmp_path: Path) -> None:
    def fail(record: Any) -> None:
        if record["step"] == 2:
            raise InputError("Enough.")

    def work(ranks: Ranks) -> None:
        finetune(
            chosen,
            tmp_path / "run",
            ranks=ranks,
            on_record=fail if ranks.rank == 1 else lambda _: None,
        )

    first, second = attempt_together(2, work, tmp_path)
    assert second.said == "Enough."
    assert first.raised is PeerError
    assert "in vain, because another rank has ended" in first.said


def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    def work(ranks: Any) -> None:
        if ranks.rank == 1:
            time.sleep(3)
        else:
            ranks.gather(1, "a number")

    first, _ = attempt_together(2, work, tmp_path, patience=timedelta(seconds=1))
    assert first.raised is PeerError
    assert "waited for a number in vain, because another rank did not answer" in first.said
    assert "within 1 s" in first.said


def test_what_one_does_alone_is_waited_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_LONG_PATIENCE", timedelta(seconds=2))
    base = BaseInfo(source="tiny", revision=None, dtype="float32", random_weights=True, sha256=None)

    def work(ranks: Any) -> None:
        time.sleep(1.5 * ranks.rank)
        check_same(ranks, {"base": base.model_dump()})
        if ranks.is_first:
            time.sleep(4)
        else:
            ranks.of_first(lambda: None, "rank 0")

    _, second = attempt_together(2, work, tmp_path, patience=timedelta(seconds=1))
    assert second.raised is PeerError
    assert (
        "waited for rank 0 in vain, because another rank did not answer within 2 s" in second.said
    )


def test_processes_that_are_accelerated_otherwise_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def work(ranks: Ranks) -> list[str]:
        found = [[["a"], ["a"], ["b", "a"]], [["a"], ["a"], ["a"]]]
        for accelerations in found:
            warn_of_other_accelerations(ranks, accelerations[ranks.rank])
        return caplog.messages

    (warning,), *_ = together(3, work, tmp_path)
    assert "Other accelerations work on rank 2 than on rank 0" in warning
    assert "add b to speed.without" in warning
