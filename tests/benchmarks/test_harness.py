"""The harness: search of settings, rounds, suites and targets."""

import inspect
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from benchmarks.ablation import ablation, answering
from benchmarks.harness import Conclusion, Contender, Groups, Job, Outcome, Progress, Side, Suite
from benchmarks.scaling import scaling

from benchmarks import __main__, harness, machine, suites

SECONDS = {"a": 3, "b": 1, "c": 2}
SETTINGS = {"kind": ["a", "b", "c"], "batch": [8, 4, 16]}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs in the order in which they ran; their outcomes are invented."""
    jobs: list[Job] = []

    def run(job: Job) -> Outcome:
        jobs.append(job)
        if job.options.get("batch") == 16:
            return {"error": "no memory"}
        seconds = SECONDS[job.options.get("kind", "a")] * job.options.get("batch", 1)
        return {"seconds": [seconds], "questions": 1}

    monkeypatch.setattr(harness, "run", run)
    return jobs


def suite(rounds: int) -> Suite:
    sides = {
        "tries": Side("f", "{kind} by {batch}", {"same": 0}, SETTINGS),
        "alone": Side("g", "as it is", {}),
    }
    return Suite("test", {}, sides, rounds, conclude)


def conclude(_: Groups) -> Conclusion:
    return Conclusion({})


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_fastest_setting_runs_in_every_round(ran: list[Job], rounds: int) -> None:
    groups = harness.compete(suite(rounds), Progress(suite(rounds).runs))
    names = [contender.job.name for contender in groups["tries"]]
    assert names == ["a by 8", "b by 8", "c by 8", "b by 4", "b by 16"]
    chosen = harness.best(groups["tries"])
    assert chosen.job == Job("b by 4", "f", {"same": 0, "kind": "b", "batch": 4})
    assert chosen.seconds == [4] * rounds
    assert [job.name for job in ran[6:]] == ["b by 4", "as it is"] * (rounds - 1)
    assert len(ran) == suite(rounds).runs


def test_the_contender_with_the_most_runs_is_the_best() -> None:
    once = Contender(Job("once", "f", {}), [{"seconds": [2]}])
    twice = Contender(Job("twice", "f", {}), [{"seconds": [1]}, {"seconds": [5]}])
    assert harness.best([once, twice]) is twice


PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


@PRECISIONS
@pytest.mark.parametrize("scale", [suites.QUICK, suites.FULL, suites.GPU])
def test_every_sides_function_accepts_its_options(scale: suites.Scale, precision: str) -> None:
    all_suites = [
        *(suites.training_gpt2("", adapter, scale, precision) for adapter in scale.adapters),
        suites.training_llama("", "", scale, precision),
        suites.evaluation_llama("", "", scale, precision),
        suites.single("", scale, precision),
        *(suites.evaluation_gpt2("", tokens, scale, precision) for tokens in scale.answer_tokens),
        suites.whole("", scale, precision),
        suites.epoch("", precision),
        ablation("ablation", "gpt2", "", "", scale, precision),
        answering("", scale, precision),
        scaling(Path(), scale.steps, precision),
    ]
    for side in (side for one in all_suites for side in one.sides.values()):
        job = side.job({name: values[0] for name, values in side.settings.items()})
        module, function = job.function.split(".")
        called = getattr(import_module(f"benchmarks.{module}"), function)
        inspect.signature(called).bind(**job.options)


@PRECISIONS
def test_bf16_is_reported_only_if_the_machine_computes_in_it(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = dict.fromkeys(("peak_mib", "growth_mib", "flops", "flops_separate"), 1)
    rates = {"float32_gflops": 1, "bfloat16_gflops": 1}
    outcome = {"seconds": [1], "questions": 1, "answers": {}, **measured, **rates}
    monkeypatch.setattr(harness, "run", lambda _: outcome)
    told: list[str] = []
    for one in (
        suites.training_gpt2("", "all-linear", suites.QUICK, precision),
        suites.training_llama("", "", suites.QUICK, precision),
        suites.single("", suites.QUICK, precision),
        suites.evaluation_gpt2("", 6, suites.QUICK, precision),
        suites.epoch("", precision),
    ):
        groups = harness.compete(one, Progress(one.runs))
        conclusion = one.conclude(groups)
        told += [*groups, *conclusion.ratios, *(target.name for target in conclusion.targets)]
        assert not any(math.isnan(ratio) for ratio in conclusion.ratios.values())
    assert any("bf16" in name for name in told) == (precision == "bfloat16")


def test_a_failed_contender_is_never_the_best(failed: Contender) -> None:
    slow = Contender(Job("slow", "f", {}), [{"seconds": [100], "questions": 1}])
    assert harness.best([failed, slow]) is slow


@pytest.fixture
def failed() -> Contender:
    return Contender(Job("failed", "f", {}), [{"error": "no memory"}])


@pytest.mark.parametrize("target", [harness.at_least, harness.at_most])
def test_a_failed_contender_meets_no_target(
    target: Callable[..., harness.Target], failed: Contender
) -> None:
    assert not target("time", 1, failed.median_seconds).met


@pytest.mark.parametrize("there_is_one", [False, True])
def test_the_epoch_suite_needs_a_gpu_and_ablation_a_cpu(
    there_is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "on_a_gpu", lambda: there_is_one)
    chosen = __main__._suites(Path(), suites.GPU, "bfloat16", None)
    assert ("epoch" in {suite.name for suite in chosen}) == there_is_one
    assert ("ablation" in {suite.name for suite in chosen}) != there_is_one


def test_an_unknown_suite_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(
        SystemExit, match=r"No suite has such a name; the suites are training-all-linear, .*"
    ):
        __main__._suites(Path(), suites.FULL, "float32", ["nothing"])


@pytest.mark.parametrize(("seen", "given"), [(None, "0"), ("2,3", "2"), ("", "")])
def test_workers_see_only_one_gpu(
    seen: str | None, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert harness._one_gpu() == given


@PRECISIONS
def test_a_result_says_which_kind_of_machine_it_is_from(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "fastest_precision", lambda: precision)
    monkeypatch.setattr(machine, "on_a_gpu", lambda: False)
    word = "with" if precision == "bfloat16" else "without"
    assert machine.machine("a command")["kind"] == f"CPU {word} bf16 instructions"
    monkeypatch.setattr(machine, "on_a_gpu", lambda: True)
    assert machine.kind() == "GPU"
