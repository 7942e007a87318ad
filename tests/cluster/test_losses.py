"""What goes wrong on a cluster ends in a sentence, and not never. No cluster is started here."""

import errno
import itertools
import logging
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from tests.batch.conftest import CONTEXTS, ROWS, answered, read_lines, write_lines
from tests.cluster.conftest import NO_RAY

from loraqa.batch.open import open_source
from loraqa.batch.options import Options
from loraqa.batch.plan import make_plan
from loraqa.errors import LoraqaError
from loraqa.reader_options import ReaderOptions

ray = pytest.importorskip("ray", reason=NO_RAY)

NODE = "0" * 56


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """In the place of Ray; each task is a number, and the first one under way is finished."""
    pretended = MagicMock()
    pretended.remote.return_value.options.return_value.remote.side_effect = itertools.count()
    pretended.wait.side_effect = lambda tasks, **_: (tasks[:1], tasks[1:])
    pretended.get_runtime_context.return_value.get_node_id.return_value = NODE
    monkeypatch.setattr("loraqa.cluster.sweep.ray", pretended)
    monkeypatch.setattr("loraqa.cluster.sweep.workers_and_needs", lambda _: (1, {}))
    monkeypatch.setattr("loraqa.cluster.sweep._judge", lambda *_: None)
    return pretended


def test_a_trial_that_kills_its_process_each_time_fails(
    pretended: MagicMock, caplog: pytest.LogCaptureFixture
) -> None:
    from loraqa.cluster.connect import LOSSES
    from loraqa.cluster.sweep import on_cluster

    work = MagicMock()
    trial = SimpleNamespace(number=3)
    work.next.side_effect = [trial, *[None] * 100]
    pretended.get.side_effect = ray.exceptions.OutOfMemoryError("The machine is full.\nMore")
    on_cluster()(work)
    tasks = pretended.remote.return_value.options.return_value.remote
    # One is not that of the trial, but the actor that judges.
    assert len(tasks.mock_calls) - 1 == 1 + LOSSES
    ((recorded, outcome), _) = work.record.call_args
    assert recorded is trial
    assert "its process was lost 6 times (The machine is full)" in outcome.problem
    assert (
        caplog.messages
        == ["Trial 3 lost its process (The machine is full), and goes on in a new one."] * LOSSES
    )


def test_what_judges_trials_stays_on_the_machine_of_the_command(pretended: MagicMock) -> None:
    from loraqa.cluster.sweep import on_cluster

    work = MagicMock()
    work.next.return_value = None
    on_cluster()(work)
    options = [call.kwargs for call in pretended.remote.return_value.options.mock_calls]
    (strategy,) = [each["scheduling_strategy"] for each in options if "scheduling_strategy" in each]
    assert (strategy.node_id, strategy.soft) == (NODE, False)


def test_a_full_disk_in_a_trial_is_told_in_a_sentence(
    pretended: MagicMock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from loraqa.cluster.sweep import _outcome, _train

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "trial-0001/checkpoint")

    monkeypatch.setattr("loraqa.cluster.sweep.train_trial", full)
    # The task goes to its folder; the test comes back.
    monkeypatch.chdir(Path.cwd())
    pretended.get.side_effect = None
    pretended.get.return_value = _train(tmp_path, MagicMock(), 1, MagicMock(), tmp_path, "")
    with pytest.raises(LoraqaError, match=r"trial-0001/checkpoint: No space .*; free some space"):
        _outcome(0, MagicMock(), Counter())


def test_a_full_disk_in_a_reader_is_told_in_a_sentence(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraqa.cluster.answer import _Answering

    def full(_: ReaderOptions) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "cache")

    monkeypatch.setattr(ReaderOptions, "load", full)
    plan = make_plan(open_source(write_lines(tmp_path / "in.jsonl", ROWS)))
    reader = _Answering(plan.source, Options(ReaderOptions(tiny_folder)), Path.cwd())
    assert reader._answer(plan.parts[0])["problem"] == (
        "cache: No space left on device; free some space there."
    )


def test_skipped_questions_are_named_by_the_command(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from loraqa.cluster.answer import _Answering, on_cluster

    rows = [
        *ROWS[:2],
        {"context": CONTEXTS[0], "question": "why " * 300},
        {"context": CONTEXTS[0], "question": ""},
    ]
    plan = make_plan(open_source(write_lines(tmp_path / "in.jsonl", rows)), on_bad="skip")
    options = Options(ReaderOptions(tiny_folder, max_answer_tokens=6), on_bad="skip")
    reader = _Answering(plan.source, options, Path.cwd())
    given = [reader._answer(part) for part in plan.parts]
    # As in another process.
    caplog.clear()
    monkeypatch.setattr("loraqa.cluster.answer._answers", lambda *_: given)
    with caplog.at_level(logging.WARNING):
        saved = MagicMock()
        on_cluster()(plan.source, plan.parts, options, saved, MagicMock())
    (message,) = caplog.messages
    named, reason = message.split(" (line 3) ")
    assert named == f"Skipped: The question 'why {'why ' * 14}…'"
    # The columns hold what they hold without a cluster.
    (_, replies), _ = saved.save.call_args
    problems = [None, None, f"The question {reason}", "The question is empty."]
    assert [reply.problem for reply in replies] == problems
    answered(plan.source.path, tmp_path / "out.jsonl", tiny_folder, on_bad="skip")
    assert [row["problem"] for row in read_lines(tmp_path / "out.jsonl")] == problems


def test_what_a_lost_actor_had_is_asked_of_others() -> None:
    from loraqa.cluster.answer import _despite_losses
    from loraqa.cluster.connect import LOSSES

    asked = []

    def answers(losses: int) -> Any:
        asked.append(losses)
        yield len(asked)
        if len(asked) <= losses:
            raise ray.exceptions.ActorUnavailableError("gone", b"0" * 16)

    assert list(_despite_losses(lambda: answers(2))) == [1, 2, 3]
    asked.clear()
    with pytest.raises(ray.exceptions.ActorUnavailableError):
        list(_despite_losses(lambda: answers(LOSSES + 1)))
    assert len(asked) == LOSSES + 1


def test_an_error_of_ray_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from loraqa.cluster import connect

    monkeypatch.setattr(connect, "_start", lambda: None)
    monkeypatch.setattr(connect.ray, "shutdown", lambda: None)
    with (
        pytest.raises(LoraqaError, match=r"cluster has failed \(.*The head is gone\); see whether"),
        connect.connected(connect.LOCAL),
    ):
        raise ray.exceptions.RaySystemError("The head is gone.")
