"""Trials on a cluster are those of one process, to the bit, and a lost one goes on."""

from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import NO_RAY, kill_worker
from tests.conftest import tiny_model
from tests.sweep.conftest import choose

from loraqa.sweep.run import sweep
from loraqa.sweep.settings import SweepSettings
from loraqa.sweep.tried import Tried

pytest.importorskip("ray", reason=NO_RAY)

RATE = "optimisation.learning_rate"


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def facts(trials: list[Tried]) -> list[Any]:
    return [{**trial.to_json(), "seconds": None} for trial in trials]


# Every process of Ray imports much; where other work keeps the cores busy, that takes minutes.
@pytest.mark.timeout(900)
def test_trials_are_those_of_one_process_though_one_is_killed(
    two_nodes: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.train.conftest import PASSAGES

    from loraqa.cluster.connect import connected
    from loraqa.cluster.sweep import on_cluster
    from loraqa.squad import write_official
    from loraqa.sweep.study import Trial

    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    write_official(tmp_path / "data.json", PASSAGES, "1.1")
    chosen = choose(base, tmp_path / "data.json")
    what = SweepSettings.model_validate(
        {"ranges": {RATE: [1e-3, 1e30, 1e-2]}, "sampler": "grid", "halving": 2}
    )
    alone = sweep(what, chosen, tmp_path / "alone", "loraqa sweep")
    judge, killed = Trial.judge, []

    def judge_and_kill(self: Trial, step: int, f1: float) -> bool:
        if self.number == 1 and not killed:
            kill_worker("_train")
            killed.append(step)
        return judge(self, step, f1)

    monkeypatch.setattr(Trial, "judge", judge_and_kill)
    with connected(two_nodes.address):
        spread = sweep(what, chosen, tmp_path / "spread", "loraqa sweep", on_cluster(1))
    assert killed == [3]
    assert facts(spread) == facts(alone)
    assert [trial.state for trial in spread].count("failed") == 1
    for trial in spread:
        if trial.state == "done":
            run = f"trial-{trial.number:04}"
            assert weights(tmp_path / "spread" / run) == weights(tmp_path / "alone" / run)
