"""A small scale study: two kills of one of two processes that train together."""

from functools import partial
from pathlib import Path

import pytest
from reliability.forks import run
from reliability.scale import Kill, Training, attempt, difference_of_weights, undisturbed
from reliability.works import write_inputs


def test_a_training_goes_on_after_one_of_its_processes_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    inputs = tmp_path / "inputs"
    run(partial(write_inputs, inputs), tmp_path)
    training = Training(inputs, "gpt2", 2, dropout=0.0)
    expected = undisturbed(training, tmp_path)
    for rank, share, then in ((1, 0.5, 2), (0, 0.7, 3)):
        kill = Kill(training, rank, int(share * expected.exchanges), 0.01, then)
        verdict = attempt(kill, tmp_path, expected)
        assert verdict.failure is None, f"{kill}: {verdict.failure}"
        assert verdict.said


def test_other_weights_are_a_difference() -> None:
    import torch

    before = {"a": torch.ones(3), "b": torch.ones(3)}
    assert difference_of_weights(before, before) is None
    after = before | {"b": torch.tensor([1.0, 1.0, 1.1])}
    assert difference_of_weights(before, after) == "b differs by 0.06 of its size"
    assert difference_of_weights(before, before | {"b": torch.full((3,), torch.nan)})
