"""How training grows with the number of processes: the model against simulations, real steps."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.ranks import __main__ as ranks_command
from benchmarks.ranks import all_reduce, measure
from benchmarks.ranks.draw import ETHERNET, H200, INFINIBAND, Cluster, figure
from benchmarks.ranks.model import (
    Network,
    Processor,
    cost_of_step,
    expected_longest,
    fit_network,
    fit_processor,
)
from benchmarks.ranks.steps import (
    ALL,
    LIKE_SQUAD,
    Size,
    idle,
    step_of,
    tokens_of_ranks,
    training_sizes,
)
from hypothesis import given
from hypothesis import strategies as st

NETWORK = Network(latency=0.003, bandwidth=1000.0)
TREES = [Size(tokens=50 + 7 * number, questions=1 + number % 5) for number in range(40)]

ranks_and_sizes = given(st.integers(1, 40), st.integers(1, 5000))


def ring_by_messages(ready: Sequence[float], size: float, network: Network) -> float:
    """Return when all ranks have the sum, if they send one message after the other in a ring."""
    hop = network.latency + size / len(ready) / network.bandwidth
    for _ in range(2 * (len(ready) - 1)):
        # A message leaves when its sender has it, and is used when its receiver is ready.
        ready = [max(ready[rank], ready[rank - 1]) + hop for rank in range(len(ready))]
    return max(ready)


@ranks_and_sizes
def test_a_ring_takes_what_its_messages_take(ranks: int, size: int) -> None:
    expected = ring_by_messages([0.0] * ranks, size, NETWORK)
    assert NETWORK.ring(size, ranks) == pytest.approx(expected)


@ranks_and_sizes
def test_a_tree_has_fewer_messages_and_a_ring_less_to_send(ranks: int, size: int) -> None:
    no_latency, no_bytes = Network(0, 1000.0), Network(0.003, math.inf)
    assert no_latency.ring(size, ranks) <= no_latency.tree(size, ranks)
    if ranks > 2:
        assert no_bytes.tree(size, ranks) <= no_bytes.ring(size, ranks)
    assert NETWORK.all_reduce(size, 1) == 0


@pytest.mark.parametrize("ranks", [1, 2, 7, 64])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.3])
def test_a_step_costs_what_a_simulation_takes(ranks: int, spread: float) -> None:
    """Each simulated step draws how slow each rank is, and then sends every message."""
    processor = Processor(fixed=0.05, per_token=0.001, spread=spread)
    chance = np.random.default_rng(ranks)
    tokens = chance.integers(800, 1200, ranks)
    size = 40.0
    network = Network(latency=0.0002, bandwidth=1000.0)
    times = []
    for _ in range(400):
        slow = np.exp(chance.normal(-(spread**2) / 2, spread, ranks))
        ready = processor.per_token * tokens * slow
        times.append(processor.fixed + ring_by_messages(ready.tolist(), size, network))
    cost = cost_of_step(tokens.tolist(), size, processor, network)
    said = cost.total - cost.exchange + network.ring(size, ranks)
    error = np.std(times) / math.sqrt(len(times))
    assert said == pytest.approx(np.mean(times), abs=5 * error + 1e-6)
    assert said == pytest.approx(np.mean(times), rel=0.01 if spread < 0.1 else 0.05)


def test_the_longest_of_equal_loads_is_known() -> None:
    """The mean of the larger of two standard normal numbers is 1 / sqrt(pi)."""
    tiny = 1e-4
    assert expected_longest([5.0], 0.3) == pytest.approx(5)
    assert expected_longest([5.0, 5.0], tiny) == pytest.approx(5 + 5 * tiny / math.sqrt(math.pi))
    assert expected_longest([5.0, 0.0], 0.3) == pytest.approx(5)
    assert expected_longest([0.0], 0.3) == 0


def test_parts_of_a_step_are_where_its_time_goes() -> None:
    cost = cost_of_step([100, 300], 40.0, Processor(0.5, 0.01, spread=0.0), NETWORK)
    assert (cost.work, cost.imbalance, cost.stragglers) == pytest.approx((2.5, 1.0, 0.0))
    assert cost.total == pytest.approx(3.5 + NETWORK.all_reduce(40.0, 2))
    assert cost.efficiency == pytest.approx(2.5 / cost.total)


def test_what_made_measurements_is_found_in_them() -> None:
    chance = np.random.default_rng(0)
    true = Processor(fixed=0.2, per_token=0.003, spread=0.05)
    tokens = [500, 1000, 2000]
    seconds = [
        (true.fixed + true.per_token * count) * np.exp(chance.normal(0, true.spread, 300))
        for count in tokens
    ]
    found = fit_processor(tokens, [times.tolist() for times in seconds])
    assert found.per_token == pytest.approx(true.per_token, rel=0.03)
    assert found.fixed == pytest.approx(true.fixed, rel=0.2)
    assert found.spread == pytest.approx(true.spread, rel=0.1)
    sizes = [2.0**power for power in range(6, 27, 2)]
    for ranks in (2, 5):
        fitted = fit_network(sizes, [NETWORK.ring(size, ranks) for size in sizes], ranks)
        assert fitted.latency == pytest.approx(NETWORK.latency)
        assert fitted.bandwidth == pytest.approx(NETWORK.bandwidth)


def test_no_part_of_a_processor_is_negative() -> None:
    found = fit_processor([100, 200], [[1.0], [2.5]])
    assert found.fixed == 0
    assert found.per_token > 0


@pytest.mark.parametrize("questions", [1, 30, 1000])
def test_a_step_takes_whole_trees_and_repeats_them_when_all_are_taken(questions: int) -> None:
    step = step_of(TREES, questions, seed=0)
    held = sum(tree.questions for tree in step)
    assert questions <= held < questions + max(tree.questions for tree in TREES)
    whole = step[: len(TREES)]
    assert len(set(whole)) == len(whole)
    assert step == step_of(TREES, questions, seed=0)


def test_ranks_have_all_tokens_of_a_step() -> None:
    for ranks in (1, 3, 100):
        tokens = tokens_of_ranks(TREES, ranks)
        assert len(tokens) == ranks
        assert sum(tokens) == sum(tree.tokens for tree in TREES)
    assert idle([3, 1]) == pytest.approx(1 / 3)


@pytest.fixture(scope="module", params=[LIKE_SQUAD, ALL])
def real(request: pytest.FixtureRequest) -> list[Size]:
    """The trees of SQuAD's training data, or of the demo's world."""
    return training_sizes(request.param)


@pytest.mark.parametrize("ranks", [8, 1024])
def test_planned_ranks_idle_less_than_3_percent(ranks: int, real: list[Size]) -> None:
    """The step of 1,024 ranks takes every context several times."""
    step = step_of(real, measure.QUESTIONS_PER_RANK * ranks, seed=1)
    assert idle(tokens_of_ranks(step, ranks)) < 0.03


def test_a_figure_has_a_line_for_each_cluster() -> None:
    clusters = {"near": Cluster(H200, INFINIBAND, 1e7), "far": Cluster(H200, ETHERNET, 1e7)}
    work, waiting, epoch = figure(clusters, TREES).axes
    assert [line.get_label() for line in work.lines] == ["near", "far"]
    assert len(waiting.lines) == len(epoch.lines) == 4
    near, far = (np.asarray(line.get_ydata()) for line in work.lines)
    assert (near[1:] > far[1:]).all()


def test_steps_of_two_ranks_are_measured() -> None:
    (measured,) = measure.steps([4], [2], 2, shape=(2, 64, 2))
    assert measured["ranks"] == len(measured["tokens"]) == len(measured["seconds"]) == 2
    assert measured["questions"] >= 4
    assert measured["adapter_bytes"] > 4 * 16 * 2 * 64
    assert min(measured["seconds"]) > 0


def test_all_reduces_of_two_ranks_are_measured() -> None:
    times = measure.all_reduces(2)
    assert [int(size) for size in times] == all_reduce.SIZES
    assert min(times.values()) > 0


def test_measurements_are_compared_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, picture = tmp_path / "ranks.json", tmp_path / "ranks.png"
    steps = [([100], 1.0), ([60, 40], 0.7), ([200], 2.0), ([100, 100], 1.1)]
    measured = {
        "all_reduce": {"64": 0.001, "4096": 0.002},
        "steps": [
            *({"ranks": len(tokens), "questions": 9, "tokens": tokens} for tokens, _ in steps),
        ],
        "planning": measure.planning(TREES, [1, 2]),
    }
    for step, (_, seconds) in zip(measured["steps"], steps, strict=True):
        step.update(adapter_bytes=4096, seconds=[seconds, seconds])
    results.write_text(json.dumps(measured))

    def run(command: str) -> str:
        words = [command, "--results", str(results), "--picture", str(picture)]
        monkeypatch.setattr(sys, "argv", ["benchmarks.ranks", *words])
        monkeypatch.setattr(ranks_command, "training_sizes", lambda: TREES)
        ranks_command.main()
        return capsys.readouterr().out

    # 0.01 s a token, and 2 ms to exchange: 60 tokens take 0.602 s.
    assert "0.602" in run("model")
    assert "planning" in run("draw")
    assert picture.stat().st_size > 0
