"""The loop equals a plain one, can be interrupted and resumed, and stops at failures."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import assert_near, tiny_model
from tests.train.conftest import Answering, adapted, adapter_bytes, plan, scores, settings
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import get_cosine_schedule_with_warmup

from loraqa.errors import LoraqaError
from loraqa.lora.adapter import load_adapter
from loraqa.lora.layer import lora_layers
from loraqa.model.loss import answer_loss
from loraqa.model.runner import TreeRunner
from loraqa.prompt.tree import Tree
from loraqa.squad import Scores
from loraqa.train.checkpoint import TrainState
from loraqa.train.loop import train
from loraqa.train.manifest import check_whole, newest_whole
from loraqa.train.run import Record, RunDirectory
from loraqa.train.settings import RunSettings
from loraqa.train.stopping import StoppedError

STEPS = 8


@pytest.fixture(params=[0, 1], ids=["", "a step ahead"], autouse=True)
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Launch no step ahead, as on a CPU, or one step, as on a GPU."""
    monkeypatch.setattr("loraqa.train.loop._steps_ahead", lambda _: request.param)
    steps: int = request.param
    return steps


def start(trees: list[Tree], run: RunDirectory, chosen: RunSettings, **options: Any) -> TrainState:
    return train(adapted(chosen), plan(trees, chosen), chosen, run, **options)


def go_on(trees: list[Tree], run: RunDirectory, chosen: RunSettings, **options: Any) -> TrainState:
    """Resume as the recipe does: the adapter first, then the rest."""
    checkpoint = newest_whole(run.checkpoints)
    if checkpoint is None:
        return start(trees, run, chosen, **options)
    model = tiny_model("gpt2")
    load_adapter(model, checkpoint / "adapter")
    runner = TreeRunner(model)
    return train(runner, plan(trees, chosen), chosen, run, checkpoint=checkpoint, **options)


def last(run: RunDirectory) -> Path:
    checkpoint = newest_whole(run.checkpoints)
    assert checkpoint is not None
    return checkpoint


def at_step(step: int, act: Callable[[], None]) -> Callable[[Record], None]:
    """Return a function of records that calls `act` right after an optimizer step."""

    def call(record: Record) -> None:
        if record["step"] == step and record["kind"] == "train":
            act()

    return call


def crash() -> None:
    raise KeyError("crash")


def send(number: signal.Signals) -> Callable[[], None]:
    # Another thread could handle a signal later, and two pending signals count as one.
    return lambda: signal.raise_signal(number)


def records(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    return [record for record in run.metrics() if record["kind"] == kind]


@pytest.fixture(scope="module")
def undisturbed(trees: list[Tree], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that was not interrupted, with evaluations in between."""
    run = RunDirectory(tmp_path_factory.mktemp("undisturbed"))
    start(trees, run, settings("evaluation.every=3"), scoring=Answering(lambda: scores(0.0)))
    return run


def test_it_learns_what_a_plain_loop_learns(trees: list[Tree], run: RunDirectory) -> None:
    chosen = settings("lora.dropout=0", "optimisation.warmup=0", "optimisation.clip_norm=0.5")
    train(adapted(chosen, "float64"), plan(trees, chosen), chosen, run)
    runner = adapted(chosen, "float64")
    parameters = [p for p in runner.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01, foreach=False)
    schedule: Any = get_cosine_schedule_with_warmup(optimizer, 0, STEPS)
    for epoch in range(4):
        for step in plan(trees, chosen).epoch(epoch):
            logits, targets = runner.answer_logits([tree for batch in step for tree in batch])
            cross_entropy(logits, targets).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    learned = tiny_model("gpt2", "float64")
    load_adapter(learned, last(run) / "adapter")
    pairs = zip(lora_layers(learned).values(), lora_layers(runner.model).values(), strict=True)
    for ours, theirs in pairs:
        assert_near(ours.lora_A, theirs.lora_A, 1e-9)
        assert_near(ours.lora_B, theirs.lora_B, 1e-9)
        assert ours.lora_B.abs().max() > 1e-3


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    trees: list[Tree], run: RunDirectory, undisturbed: RunDirectory
) -> None:
    start(trees, run, settings())
    assert adapter_bytes(last(run)) == adapter_bytes(last(undisturbed))
    start(trees, run, settings("seed=1"))
    assert adapter_bytes(last(run)) != adapter_bytes(last(undisturbed))


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_run_that_crashed_and_was_resumed_has_the_same_bits(
    trees: list[Tree], run: RunDirectory, undisturbed: RunDirectory, stop: int
) -> None:
    chosen = settings("evaluation.every=3")
    options: dict[str, Any] = {"scoring": Answering(lambda: scores(0.0))}
    with pytest.raises(KeyError, match="crash"):
        start(trees, run, chosen, on_record=at_step(stop, crash), **options)
    state = go_on(trees, run, chosen, **options)
    assert state.step == STEPS
    assert last(run).name == last(undisturbed).name == "step-000008"
    for name in ("optimizer.safetensors", "adapter/adapter_model.safetensors"):
        assert (last(run) / name).read_bytes() == (last(undisturbed) / name).read_bytes()


def test_a_run_with_a_rate_for_b_of_its_own_resumes_to_the_same_bits(
    trees: list[Tree], run: RunDirectory, tmp_path: Path, undisturbed: RunDirectory
) -> None:
    chosen, whole = settings("optimisation.b_rate_ratio=8"), RunDirectory(tmp_path / "whole")
    start(trees, whole, chosen)
    assert adapter_bytes(last(whole)) != adapter_bytes(last(undisturbed))
    with pytest.raises(KeyError, match="crash"):
        start(trees, run, chosen, on_record=at_step(5, crash))
    go_on(trees, run, chosen)
    for name in ("optimizer.safetensors", "adapter/adapter_model.safetensors"):
        assert (last(run) / name).read_bytes() == (last(whole) / name).read_bytes()


def test_a_run_whose_epochs_follow_from_its_data_resumes_to_the_same_bits(
    trees: list[Tree], run: RunDirectory, tmp_path: Path
) -> None:
    chosen, whole = settings("optimisation.epochs=null"), RunDirectory(tmp_path / "whole")
    # Ten epochs of two steps.
    assert start(trees, whole, chosen).step == 20
    with pytest.raises(KeyError, match="crash"):
        start(trees, run, chosen, on_record=at_step(5, crash))
    assert go_on(trees, run, chosen).step == 20
    assert records(run, "train")[-1]["epoch"] == 10
    for name in ("optimizer.safetensors", "adapter/adapter_model.safetensors"):
        assert (last(run) / name).read_bytes() == (last(whole) / name).read_bytes()


@pytest.mark.parametrize("stop", [3, 4])
def test_metrics_of_a_resumed_run_have_every_step_once(
    trees: list[Tree], run: RunDirectory, undisturbed: RunDirectory, stop: int
) -> None:
    chosen = settings("evaluation.every=3")
    with pytest.raises(KeyError, match="crash"):
        start(
            trees,
            run,
            chosen,
            on_record=at_step(stop, crash),
            scoring=Answering(lambda: scores(0.0)),
        )
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "train", "st')
    go_on(trees, run, chosen, scoring=Answering(lambda: scores(0.0)))
    for kind, keys in {
        "train": ["step", "epoch", "loss", "learning_rate", "gradient_norm"],
        "evaluation": ["step", "exact_match", "f1", "total"],
    }.items():
        told = [[record[key] for key in keys] for record in records(run, kind)]
        assert told == [[record[key] for key in keys] for record in records(undisturbed, kind)]


def test_metrics_have_every_step_and_evaluation(undisturbed: RunDirectory) -> None:
    steps = records(undisturbed, "train")
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert [record["epoch"] for record in steps][-1] == 4
    for record in steps:
        assert record["seconds"] > 0
        assert record["questions_per_second"] > 0
        assert record["tokens_per_second"] > record["questions_per_second"]
        assert record["memory_mib"] > 10
    assert [record["step"] for record in records(undisturbed, "evaluation")] == [0, 3, 6, 8]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_with_a_checkpoint_and_a_message(
    trees: list[Tree],
    run: RunDirectory,
    undisturbed: RunDirectory,
    number: signal.Signals,
    status: int,
    ahead: int,
) -> None:
    before, stopped = signal.getsignal(number), 5 + ahead
    sentence = rf"after step {stopped} of 8; .*--out .*run --resume"
    with pytest.raises(StoppedError, match=sentence) as caught:
        start(trees, run, settings(), on_record=at_step(5, send(number)))
    assert caught.value.exit_code == status
    assert last(run).name == f"step-00000{stopped}"
    assert signal.getsignal(number) is before
    go_on(trees, run, settings())
    assert adapter_bytes(last(run)) == adapter_bytes(last(undisturbed))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle Ctrl-C as on a terminal: background processes of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_ends_at_once(trees: list[Tree], run: RunDirectory) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        start(trees, run, settings(), on_record=at_step(5, twice))
    assert last(run).name == "step-000003"


def test_a_second_sigterm_changes_nothing(
    trees: list[Tree], run: RunDirectory, undisturbed: RunDirectory, ahead: int
) -> None:
    """Slurm signals every process of a job, and torchrun passes on what it received."""

    def twice() -> None:
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()

    with pytest.raises(StoppedError, match=f"after step {5 + ahead} of 8"):
        start(trees, run, settings(), on_record=at_step(5, twice))
    assert last(run).name == f"step-00000{5 + ahead}"
    go_on(trees, run, settings())
    assert adapter_bytes(last(run)) == adapter_bytes(last(undisturbed))


def test_training_works_in_another_thread(trees: list[Tree], run: RunDirectory) -> None:
    with ThreadPoolExecutor() as pool:
        state = pool.submit(start, trees, run, settings()).result()
    assert state.step == STEPS


def test_a_signal_while_scoring_saves_at_once_and_scoring_is_repeated(
    trees: list[Tree], run: RunDirectory, undisturbed: RunDirectory
) -> None:
    chosen = settings("evaluation.every=4", "checkpoint.every=100")
    calls: list[str] = []

    def stopped_the_second_time() -> Scores:
        calls.append("begun")
        if len(calls) == 2:
            send(signal.SIGTERM)()
            calls.append("not reached")
        return scores(1.0)

    with pytest.raises(StoppedError, match="after step 4"):
        start(trees, run, chosen, scoring=Answering(stopped_the_second_time))
    assert calls == ["begun", "begun"]
    go_on(trees, run, chosen, scoring=Answering(lambda: scores(1.0)))
    assert [record["step"] for record in records(run, "evaluation")] == [0, 4, 8]
    assert adapter_bytes(last(run)) == adapter_bytes(last(undisturbed))


def test_scoring_does_not_change_the_training(
    trees: list[Tree], run: RunDirectory, undisturbed: RunDirectory
) -> None:
    runner = adapted(settings())

    def draw() -> Scores:
        assert not any(module.training for module in runner.model.modules())
        torch.rand(7)
        return scores(1.0)

    chosen = settings("evaluation.every=1")
    train(runner, plan(trees, chosen), chosen, run, scoring=Answering(draw))
    assert adapter_bytes(last(run)) == adapter_bytes(last(undisturbed))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_in_no_checkpoint(
    trees: list[Tree], run: RunDirectory, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        steps = len(records(run, "train"))
        return answer_loss(logits, targets) * (float(value) if steps == 6 else 1.0)

    monkeypatch.setattr("loraqa.model.loss.answer_loss", loss)
    with pytest.raises(LoraqaError) as caught:
        start(trees, run, settings("checkpoint.every=6"))
    message = str(caught.value)
    assert f"loss is {value}" in message
    assert "step 7 (questions " in message
    assert any(branch.question_id in message for tree in trees for branch in tree.branches)
    assert "start again in another folder" in message
    assert "lower than 0.01" in message
    assert caught.value.exit_code == 1
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000006"]
    model = tiny_model("gpt2")
    load_adapter(model, last(run) / "adapter")
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_gradient_that_is_not_finite_stops_the_run(
    trees: list[Tree], run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        loss = answer_loss(logits, targets)
        # The square root of 0 is finite, but its gradient is not.
        return loss + (loss * 0).sqrt()

    monkeypatch.setattr("loraqa.model.loss.answer_loss", loss)
    with pytest.raises(LoraqaError, match="gradient's norm nan in step 1"):
        start(trees, run, settings())


def test_weights_that_are_not_finite_are_in_no_checkpoint(
    trees: list[Tree], run: RunDirectory
) -> None:
    runner = adapted(settings())
    layer = next(iter(lora_layers(runner.model).values()))

    def spoil() -> None:
        layer.lora_B.data[0, 0] = torch.nan

    with pytest.raises(LoraqaError, match="After step 3 the adapter holds a NaN"):
        train(runner, plan(trees, settings()), settings(), run, on_record=at_step(3, spoil))
    assert newest_whole(run.checkpoints) is None


def out_of_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_lack_of_memory_is_explained(
    trees: list[Tree], run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraqa.model.loss.answer_loss", out_of_memory)
    with pytest.raises(LoraqaError, match=r"Out of memory in step 1 .*tokens_per_batch from 120"):
        start(trees, run, settings())


def test_lack_of_memory_while_scoring_is_explained(trees: list[Tree], run: RunDirectory) -> None:
    chosen = settings("evaluation.every=3")
    with pytest.raises(LoraqaError, match=r"while scoring step 0 .*tokens_per_batch from 120"):
        start(trees, run, chosen, scoring=Answering(out_of_memory))


def in_turn(*f1: float) -> Answering:
    """Return a scoring with these F1, one after another."""
    values: Iterator[float] = iter(f1)
    return Answering(lambda: scores(next(values)))


def test_the_best_checkpoint_is_kept_beside_the_newest(
    trees: list[Tree], run: RunDirectory
) -> None:
    chosen = settings("evaluation.every=2", "checkpoint.every=1", "checkpoint.keep=2")
    state = start(trees, run, chosen, scoring=in_turn(50, 10, 30, 20, 20))
    assert state.baseline is not None
    assert (state.baseline.step, state.baseline.f1) == (0, 50)
    assert state.best is not None
    assert (state.best.step, state.best.f1) == (4, 30)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "step-000004",
        "step-000007",
        "step-000008",
    ]


def test_the_later_of_two_equal_scores_is_the_best(trees: list[Tree], run: RunDirectory) -> None:
    state = start(trees, run, settings("evaluation.every=4"), scoring=in_turn(0, 0, 0))
    assert state.best is not None
    assert state.best.step == STEPS


def test_patience_stops_a_run_that_does_not_improve(trees: list[Tree], run: RunDirectory) -> None:
    chosen = settings("evaluation.every=1", "evaluation.patience=2")
    state = start(trees, run, chosen, scoring=in_turn(0, 10, 20, 20, 15, 99))
    assert state.step == 4
    assert last(run).name == "step-000004"
    again = go_on(trees, run, chosen, scoring=in_turn())
    assert again.step == 4


def test_resuming_a_finished_run_does_nothing_and_says_so(
    trees: list[Tree], run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="loraqa"):
        start(trees, run, settings(), scoring=in_turn(0, 1))
        assert caplog.messages == []
        before = json.dumps(run.metrics())
        state = go_on(trees, run, settings(), scoring=in_turn())
    assert caplog.messages == [
        f"The training in {run.path} was finished after step 8; nothing is left to train."
    ]
    assert state.step == STEPS
    assert json.dumps(run.metrics()) == before


def test_a_run_whose_checkpoints_are_all_broken_starts_again(
    trees: list[Tree],
    run: RunDirectory,
    undisturbed: RunDirectory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(KeyError, match="crash"):
        start(trees, run, settings(), on_record=at_step(7, crash))
    for checkpoint in run.checkpoints.iterdir():
        (checkpoint / "manifest.json").write_text("{}")
    go_on(trees, run, settings())
    assert "STARTS AGAIN FROM STEP 0" in caplog.text
    assert [record["step"] for record in records(run, "train")] == list(range(1, STEPS + 1))
    assert adapter_bytes(last(run)) == adapter_bytes(last(undisturbed))


def test_a_broken_checkpoint_is_skipped_and_made_again(
    trees: list[Tree],
    run: RunDirectory,
    undisturbed: RunDirectory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(KeyError, match="crash"):
        start(trees, run, settings(), on_record=at_step(7, crash))
    (run.checkpoints / "step-000006" / "optimizer.safetensors").unlink()
    with caplog.at_level(logging.WARNING, logger="loraqa"):
        go_on(trees, run, settings())
    assert (
        "step-000006 is broken: optimizer.safetensors is missing. This checkpoint is not used."
        in caplog.text
    )
    assert adapter_bytes(last(run)) == adapter_bytes(last(undisturbed))


def test_a_broken_best_checkpoint_is_made_again(trees: list[Tree], run: RunDirectory) -> None:
    chosen = settings("evaluation.every=3", "checkpoint.every=2")
    with pytest.raises(KeyError, match="crash"):
        start(trees, run, chosen, on_record=at_step(7, crash), scoring=in_turn(0, 10, 20))
    # Step 6 has the best score; step 3 is the best that step 4 knows.
    assert sorted(path.name[-1] for path in run.checkpoints.iterdir()) == ["3", "4", "6"]
    (run.checkpoints / "step-000006" / "state.json").unlink()
    state = go_on(trees, run, chosen, scoring=in_turn(20, 4))
    assert state.best is not None
    assert (state.best.step, state.without_gain) == (6, 1)
    check_whole(run.checkpoints / "step-000006")


def test_a_truncated_best_checkpoint_is_no_longer_the_best(
    trees: list[Tree], run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings("evaluation.every=3", "checkpoint.every=1")
    with pytest.raises(KeyError, match="crash"):
        start(trees, run, chosen, on_record=at_step(5, crash), scoring=in_turn(0, 90))
    adapter = run.checkpoints / "step-000003" / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, logger="loraqa"):
        state = go_on(trees, run, chosen, scoring=in_turn(20, 10))
    assert "step-000003 is broken" in caplog.text
    assert state.best is not None
    assert (state.best.step, state.best.f1) == (6, 20)
    assert "It had the best scores of this run. The best of the later scorings replaces it." in (
        caplog.text
    )


def spoil_adapter(run: RunDirectory, step: int) -> None:
    adapter = run.checkpoints / f"step-{step:06d}" / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1])


@pytest.mark.parametrize("finished", [False, True])
def test_the_best_of_the_whole_checkpoints_replaces_a_damaged_best_one(
    trees: list[Tree], run: RunDirectory, caplog: pytest.LogCaptureFixture, finished: bool
) -> None:
    chosen = settings("evaluation.every=2", "checkpoint.every=2")
    if finished:
        start(trees, run, chosen, scoring=in_turn(0, 90, 50, 70, 60))
    else:
        with pytest.raises(KeyError, match="crash"):
            start(trees, run, chosen, on_record=at_step(7, crash), scoring=in_turn(0, 90, 50, 70))
    spoil_adapter(run, 2)
    state = go_on(trees, run, chosen, scoring=in_turn() if finished else in_turn(60))
    assert state.best is not None
    assert (state.best.step, state.best.f1) == (6, 70)
    assert "It had the best scores of this run. Step 6 replaces it." in caplog.text
    # The damage is met again if nothing was saved since.
    again = go_on(trees, run, chosen, scoring=in_turn())
    assert again.best == state.best


def test_a_best_checkpoint_whose_optimizer_alone_is_damaged_stays_the_best(
    trees: list[Tree], run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings("evaluation.every=2", "checkpoint.every=2")
    start(trees, run, chosen, scoring=in_turn(0, 90, 50, 70, 60))
    (run.checkpoints / "step-000002" / "optimizer.safetensors").unlink()
    state = go_on(trees, run, chosen, scoring=in_turn())
    assert state.best is not None
    assert state.best.step == 2
    assert caplog.messages == []
